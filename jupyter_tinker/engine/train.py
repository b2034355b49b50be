"""A run, and the three things training does with it: forward, forward_backward, optim_step.

Either an operation is done or it raises and the run is as it was before.
Knows nothing of files, messages or how a run came to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ..wire.ops import AdamParams, LoraSpec, OpError
from ..wire.tensors import Batch
from . import adamw, batch, losses
from .adamw import AdamW
from .adapter import Adapter
from .base_model import BaseModel
from .batch import Example, Microbatch
from .logprobs import Scores

# What a pass of its own costs, in tokens of padding: a GPU waits for the launches of every layer.
_GROUP_COST = {"cpu": 32, "cuda": 1024}


@dataclass
class Run:
    """An adapter in training: its weights, gradients and optimizer."""

    name: str
    adapter: Adapter
    optimizer: AdamW
    step: int = 0  # of the optimizer
    has_gradients: bool = False

    @property
    def base(self) -> BaseModel:
        return self.adapter.base

    @property
    def lora(self) -> LoraSpec:
        return self.adapter.spec

    def zero_grad(self) -> None:
        if self.has_gradients:
            self.adapter.gradients.zero_()
            self.has_gradients = False


@dataclass(frozen=True)
class ForwardResult:
    """Each datum's arrays, in the order of the data, and the sums over them."""

    outputs: list[dict[str, np.ndarray]]
    loss_sum: float
    weight_sum: float
    num_tokens: int

    @property
    def metrics(self) -> dict[str, float]:
        """The SDK wants one colon in a key, and after it how chunks of a batch are put together."""
        return {
            "loss:sum": self.loss_sum,
            "weight:sum": self.weight_sum,
            "tokens:sum": float(self.num_tokens),
            "datums:sum": float(len(self.outputs)),
        }


@dataclass(frozen=True)
class StepResult:
    grad_norm: float
    update_norm: float


def forward_backward(run: Run, request: Batch, microbatch_tokens: int) -> ForwardResult:
    """The loss of a batch and, unless it is `forward_only`, its gradient on top of the run's."""
    loss = losses.find(request.loss_fn)
    config = losses.settings(loss, request.loss_fn_config)
    examples = batch.check(request.data, loss, run.base.limits)
    group_cost = _GROUP_COST.get(run.base.device.type, _GROUP_COST["cuda"])
    groups = batch.group([e.length for e in examples], microbatch_tokens, group_cost)
    run.base.activate(run.adapter.name)
    outputs: list[dict[str, np.ndarray]] = [{} for _ in examples]
    with _all_or_nothing(run, backward=not request.forward_only):
        for members in groups:
            packed = batch.assemble(examples, members, run.base.device)
            evaluation = _Evaluation(run, loss, config, examples, packed)
            results = evaluation.run(backward=not request.forward_only)
            for index, output in zip(members, results, strict=True):
                outputs[index] = output
    return ForwardResult(
        outputs=outputs,
        loss_sum=float(sum(o["elementwise_loss"].sum(dtype=np.float64) for o in outputs)),
        weight_sum=float(sum(_weight(example) for example in examples)),
        num_tokens=sum(example.length for example in examples),
    )


def optim_step(run: Run, params: AdamParams) -> StepResult:
    """One step of AdamW with the gradients accumulated since the last; clears them."""
    adamw.check(params)
    adapter = run.adapter
    norm = adamw.norm(adapter.gradients)
    if not math.isfinite(norm):
        run.zero_grad()
        raise OpError(
            f"the gradient norm is {norm}: these gradients were dropped, weights and optimizer are "
            f"as they were; scale the loss down or check its inputs"
        )
    gradients = adapter.gradients
    if params.grad_clip_norm > 0:
        # As torch.nn.utils.clip_grad_norm_ does, but the accumulated gradients stay whole until
        # the step has succeeded.
        gradients = gradients * min(1.0, params.grad_clip_norm / (norm + 1e-6))
    update_norm = run.optimizer.step(adapter.weights, gradients, params)
    run.zero_grad()
    run.step += 1
    return StepResult(grad_norm=norm, update_norm=update_norm)


@contextmanager
def _all_or_nothing(run: Run, *, backward: bool) -> Iterator[None]:
    """Puts the gradients back if the block fails, be it half-way through its microbatches."""
    if not backward:
        yield
        return
    gradients = run.adapter.gradients
    before = gradients.clone() if run.has_gradients else None
    run.has_gradients = True
    try:
        yield
        if not math.isfinite(adamw.norm(gradients)):
            raise OpError(
                "the gradient of this batch is not finite, so it was dropped; lower the weights of "
                "its loss, or load an earlier checkpoint if the model itself has diverged"
            )
    except BaseException:
        if before is None:
            run.zero_grad()
        else:
            gradients.copy_(before)
        raise


class _Evaluation:
    """One microbatch through model, output layer and loss, and back."""

    def __init__(
        self,
        run: Run,
        loss: losses.Loss,
        config: losses.Config,
        examples: list[Example],
        packed: Microbatch,
    ) -> None:
        self.run_ = run
        self.loss = loss
        self.config = config
        self.packed = packed
        self.examples = [examples[i] for i in packed.members]
        device = run.base.device
        self.inputs = [
            {name: torch.from_numpy(array).to(device) for name, array in example.inputs.items()}
            for example in self.examples
        ]

    def run(self, *, backward: bool) -> list[dict[str, np.ndarray]]:
        adapter = self.run_.adapter
        active = self._active_rows() if backward else None
        if active is not None and not active.any():
            active = None
        through_layers = active is not None and adapter.trains_layers
        with torch.set_grad_enabled(through_layers):
            hidden = self.run_.base.hidden_states(self.packed.tokens)  # (B, T, H)
            rows = hidden.flatten(0, 1)[self.packed.rows]  # (R, H)
        layer = self.run_.base.output_layer.with_adapter(adapter.output_adapter())
        scores = Scores(layer, rows.detach(), self.packed.targets, active, through_layers)
        values, gradient = self._loss(scores.logprobs, differentiate=active is not None)
        if gradient is not None:
            rows_gradient = scores.backward(gradient, adapter.output_gradients())
            if through_layers:
                rows.backward(rows_gradient)
        return self._outputs(scores.logprobs, values)

    def _active_rows(self) -> torch.Tensor:
        return torch.cat([self.loss.active(inputs).any(dim=1) for inputs in self.inputs])

    def _loss(
        self, logprobs: torch.Tensor, *, differentiate: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss of every row (R,), and its gradient by the log-probabilities (R, K)."""
        leaf = logprobs.detach().requires_grad_(differentiate)
        values = torch.cat(
            [
                self.loss.value(leaf[span, : example.targets.shape[1]], inputs, self.config).sum(1)
                for example, span, inputs in zip(
                    self.examples, self.packed.spans, self.inputs, strict=True
                )
            ]
        )
        self._check_finite(values.detach())
        if not differentiate:
            return values, None
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient

    def _check_finite(self, values: torch.Tensor) -> None:
        if torch.isfinite(values).all():
            return
        for member, span in zip(self.packed.members, self.packed.spans, strict=True):
            if not torch.isfinite(values[span]).all():
                raise OpError(
                    f"datum {member}: its loss is not finite, so the batch was dropped; check its "
                    f"loss inputs, or load an earlier checkpoint if the model itself has diverged"
                )

    def _outputs(self, logprobs: torch.Tensor, values: torch.Tensor) -> list[dict[str, np.ndarray]]:
        all_logprobs, all_values = logprobs.cpu().numpy(), values.cpu().numpy()
        outputs = []
        for example, span in zip(self.examples, self.packed.spans, strict=True):
            own = all_logprobs[span, : example.targets.shape[1]]
            own = own[:, 0] if example.flat else own
            outputs.append({"logprobs": own, "elementwise_loss": all_values[span]})
        return outputs


def _weight(example: Example) -> float:
    """The sum of a datum's weights; losses without weights count every token once."""
    weights = example.inputs.get("weights")
    return float(example.length if weights is None else weights.sum(dtype=np.float64))
