"""One microbatch through model, output layer and loss, and back.

Knows nothing of whole batches, of optimizers, or of what happens when it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from ..wire.ops import OpError
from . import memory
from .adapter import Adapter, Views
from .base_model import BaseModel
from .batch import Example, Microbatch
from .fast.decoder import Decoder
from .fast.lora import Lora
from .logprobs import Scores
from .losses import Config, Loss, Value


@dataclass(frozen=True)
class Result:
    """What became of one datum."""

    output: dict[str, np.ndarray]
    loss: float
    metrics: Mapping[str, float]  # the loss's own


class _Layers(Protocol):
    hidden: torch.Tensor  # (R, H), what the output layer reads at the real positions

    def backward(self, gradient: torch.Tensor) -> None:
        """dL/dhidden (R, H) -> adds to the adapter's gradients."""


class _Reference:
    """As transformers and PEFT compute it; every other way is held against it."""

    def __init__(self, base: BaseModel, packed: Microbatch, *, keep: bool) -> None:
        with torch.set_grad_enabled(keep):
            hidden = base.hidden_states(packed.tokens)  # (B, T, H)
            self.hidden = hidden.flatten(0, 1)[packed.rows]

    def backward(self, gradient: torch.Tensor) -> None:
        self.hidden.backward(gradient)


class Evaluation:
    """One microbatch; a backward pass adds to `gradients`."""

    def __init__(
        self,
        adapter: Adapter,
        gradients: Views,
        loss: Loss,
        config: Config,
        examples: Sequence[Example],
        packed: Microbatch,
        decoder: Decoder | None = None,  # in the place of transformers and PEFT
    ) -> None:
        self.adapter = adapter
        self.gradients = gradients
        self.loss = loss
        self.config = config
        self.packed = packed
        self.decoder = decoder
        self.examples = [examples[i] for i in packed.members]
        # On the CPU, like the losses: for a GPU they are many small things, of which it would wait
        # for every one.
        self.inputs = [
            {name: torch.from_numpy(array) for name, array in example.inputs.items()}
            for example in self.examples
        ]

    def run(self, *, backward: bool) -> tuple[list[Result], str | None]:
        """Each datum's result; and, as a sentence, whose loss or loss's gradient is not finite, if
        anyone's is: then nothing is added to the gradients."""
        active = self._active_rows() if backward else None
        if active is not None and not active.any():
            active = None
        through_layers = active is not None and self.adapter.trains_layers
        layers = self._layers(through_layers)
        layer = self.adapter.base.output_layer.with_adapter(self.adapter.output_adapter())
        scores = Scores(layer, layers.hidden.detach(), self.packed.targets, active, through_layers)
        logprobs = scores.logprobs.cpu()
        values, gradient = self._loss(logprobs, differentiate=active is not None)
        fault = self._fault(values, gradient)
        if gradient is not None and fault is None:
            own = gradient.to(layers.hidden.device)
            hidden_gradient = scores.backward(own, self.adapter.output_gradients(self.gradients))
            if through_layers:
                layers.backward(hidden_gradient)
        return self._results(logprobs.numpy(), values), fault

    def _layers(self, keep: bool) -> _Layers:
        """The microbatch, gone through the layers; `keep` what the way back needs."""
        packed = self.packed
        if self.decoder is None:
            return _Reference(self.adapter.base, packed, keep=keep)
        stream = packed.tokens.flatten()[packed.rows]  # (R,)
        lengths = [example.length for example in self.examples]
        recorder = self.adapter.base.recorder
        if recorder is not None:
            return recorder.forward(stream, lengths, self.adapter, keep=keep)
        return self.decoder.forward(
            stream, lengths, Lora.of(self.adapter, self.gradients), keep=keep
        )

    def _active_rows(self) -> torch.Tensor:
        active = self.loss.active
        if active is None:
            return torch.ones(len(self.packed.rows), dtype=torch.bool)
        return torch.cat([active(inputs).any(dim=1) for inputs in self.inputs])

    def _loss(
        self, logprobs: torch.Tensor, *, differentiate: bool
    ) -> tuple[list[Value], torch.Tensor | None]:
        """What each datum adds, and the gradient of the log-probabilities (R, K)."""
        gradient = torch.zeros_like(logprobs) if differentiate else None
        values: list[Value] = []
        everyone = list(range(len(self.examples)))
        # A custom loss may take much memory until its gradient is known: one datum at a time.
        for indices in [[i] for i in everyone] if self.loss.custom else [everyone]:
            cells = [self._cells(i) for i in indices]
            leaves = [logprobs[where].detach().requires_grad_(differentiate) for where in cells]
            part = [self._value(i, lp) for i, lp in zip(indices, leaves, strict=True)]
            if gradient is not None:
                for where, slope in zip(cells, self._slopes(indices, part, leaves), strict=True):
                    gradient[where] = slope
            values.extend(replace(value, loss=value.loss.detach()) for value in part)
        return values, gradient

    def _cells(self, index: int) -> tuple[slice, slice]:
        """A datum's own among all log-probabilities (R, K)."""
        return self.packed.spans[index], slice(self.examples[index].targets.shape[1])

    def _value(self, index: int, lp: torch.Tensor) -> Value:
        """A datum's loss, per token (N,) or as a whole ()."""
        try:
            value = self.loss.value(lp, self.inputs[index], self.config)
        except OpError as error:
            member = self.packed.members[index]
            raise OpError(f"datum {member}: {error.message}", error.category) from None
        return replace(value, loss=value.loss.sum(1)) if value.loss.ndim else value

    def _slopes(
        self, indices: list[int], values: list[Value], leaves: list[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        total = torch.stack([value.loss.sum() for value in values]).sum()
        try:
            return torch.autograd.grad(total, leaves)
        except RuntimeError as error:
            if not self.loss.custom or memory.ran_out(error):
                raise
            # Of a client's own making, such as a function that has no derivative.
            reason = str(error).partition("\n")[0][:300]
            member = self.packed.members[indices[0]]
            raise OpError(
                f"datum {member}: {self.loss.name} has no gradient here: {reason}"
            ) from None

    def _fault(self, values: Sequence[Value], gradient: torch.Tensor | None) -> str | None:
        everything = torch.cat([value.loss.flatten() for value in values])
        finite = torch.isfinite(everything).all()
        if gradient is not None:
            finite &= torch.isfinite(gradient).all()
        if finite:
            return None
        member = next(
            member
            for member, span, value in zip(
                self.packed.members, self.packed.spans, values, strict=True
            )
            if not torch.isfinite(value.loss).all()
            or (gradient is not None and not torch.isfinite(gradient[span]).all())
        )
        return (
            f"datum {member}: its loss is not finite, or the loss's gradient, so the gradient of "
            f"this batch was dropped; check its loss inputs, or load an earlier checkpoint if the "
            f"model itself has diverged"
        )

    def _results(self, logprobs: np.ndarray, values: Sequence[Value]) -> list[Result]:
        return [self._result(i, logprobs, value) for i, value in enumerate(values)]

    def _result(self, index: int, logprobs: np.ndarray, value: Value) -> Result:
        own = logprobs[self._cells(index)]
        losses = value.loss.numpy()
        output = {"logprobs": own[:, 0] if self.examples[index].flat else own}
        if value.loss.ndim:
            output["elementwise_loss"] = losses
        with np.errstate(invalid="ignore"):
            total = float(losses.sum(dtype=np.float64))
        return Result(output, total, value.metrics)
