"""What a person sees of the engine from a notebook on its kernel: `engine` in the namespace.

Tensors that are given out are copies on the CPU, so nothing that is done with them reaches a run.
Names that begin with an underscore lead to the engine itself. Knows nothing of kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from ..wire.ops import LoraSpec, OpError
from . import completion, tracing
from .base_model import BaseModel, Projection
from .delta_figure import heat_map
from .memory_view import Memory
from .train import Run
from .tracing import Trace, Tracer

if TYPE_CHECKING:
    from .engine import Engine


class EngineView:
    """The engine, to be looked at: `runs`, `trace`, `delta_norms` and `memory`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tracer = Tracer()
        self._tokenizers: dict[BaseModel, Tokenizer] = {}

    @property
    def runs(self) -> Runs:
        """The runs that the engine holds, by their ids."""
        return Runs(self._engine)

    def trace(
        self,
        prompt: str | Sequence[int],
        run: RunView | str | None = None,
        layer: int = -1,
        *,
        attention: bool = True,
    ) -> Trace:
        """What a decoder layer makes of a prompt: its hidden states and its attention.

        `prompt` is text or token ids; `run`, a run or its id, says whose adapter takes part, and
        without it the base model computes alone; `layer` counts from 0, or from the last one with
        -1. Raises `ValueError` and `LookupError` with a sentence.
        """
        _on_the_main_thread()
        adapter = None if run is None else self._run(run)._run.adapter
        base = self._only_base() if adapter is None else adapter.base
        tokens, texts = self._read(base, prompt)
        count = len(tracing.layers(base))
        if not -count <= layer < count:
            raise ValueError(f"layer is {layer}; {base.name} has layers 0 to {count - 1}")
        layer %= count
        try:
            hidden = self._tracer.hidden(base, adapter, tokens, layer)
            shares = self._tracer.attention(base, adapter, tokens, layer) if attention else None
        finally:
            self._tracer.tidy()
        name = None if run is None else self._run(run).id
        return Trace(tokens, texts, layer, hidden, shares, name)

    def delta_norms(self, run: RunView | str | None = None, *, relative: bool = False) -> Any:
        """How far a run has moved each layer, as a plotly heat map by layer and module: the
        Frobenius norm of the change of the weights, or with `relative` its share in theirs. The
        newest run, if none is named. Raises `LookupError`."""
        view = self.runs.latest if run is None else self._run(run)
        values = {
            path: layer.delta_norm / layer.weight_norm if relative else layer.delta_norm
            for path, layer in view.adapter.items()
        }
        what = "||BA * scale|| / ||W||" if relative else "||BA * scale||"
        return heat_map(values, f"Change by run {view.id} at step {view.step}", what)

    def memory(self) -> Memory:
        """What takes how much memory."""
        _on_the_main_thread()
        return Memory.of(self._engine)

    def __repr__(self) -> str:
        return (
            f"The Tinker engine, {self._engine.placement.reason}\n\n{self.runs!r}\n\n"
            "engine.runs[ID], engine.trace(PROMPT, RUN, LAYER), engine.delta_norms(RUN), "
            "engine.memory()"
        )

    def _run(self, run: RunView | str) -> RunView:
        return run if isinstance(run, RunView) else self.runs[run]

    def _only_base(self) -> BaseModel:
        bases = list(self._engine.bases.values())
        if len(bases) == 1:
            return bases[0]
        if not bases:
            raise LookupError("no base model is loaded yet; it is with the first run")
        names = ", ".join(base.name for base in bases)
        raise LookupError(f"there are several base models ({names}); say which run")

    def _read(self, base: BaseModel, prompt: str | Sequence[int]) -> tuple[list[int], list[str]]:
        """Token ids and their texts. Raises `ValueError`."""
        tokenizer = self._tokenizer(base)
        if isinstance(prompt, str):
            if tokenizer is None:
                raise ValueError(f"{base.name} has no tokenizer.json; give token ids")
            tokens = tokenizer.encode(prompt).ids
        else:
            tokens = [int(token) for token in prompt]
        limits = base.limits
        if not 1 <= len(tokens) <= limits.context_length:
            raise ValueError(
                f"the prompt has {len(tokens)} tokens; {base.name} takes 1 to "
                f"{limits.context_length}"
            )
        if not 0 <= min(tokens) <= max(tokens) < limits.vocab_size:
            raise ValueError(f"tokens of {base.name} go from 0 to {limits.vocab_size - 1}")
        if tokenizer is None:
            return tokens, [str(token) for token in tokens]
        return tokens, [tokenizer.decode([t], skip_special_tokens=False) for t in tokens]

    def _tokenizer(self, base: BaseModel) -> Tokenizer | None:
        if base not in self._tokenizers:
            try:
                self._tokenizers[base] = completion.tokenizer(base.path)
            except OpError:  # it has none
                return None
        return self._tokenizers[base]


class Runs(Mapping[str, "RunView"]):
    """The runs in the engine's memory; a beginning of an id that no other has will do."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def latest(self) -> RunView:
        """The run that came into the engine last. Raises `LookupError`."""
        for name in reversed(list(self)):
            return self[name]
        raise LookupError("the engine holds no run; a run comes with its client's next request")

    def __getitem__(self, name: str) -> RunView:
        found = [own for own in self if own.startswith(name)]
        if name in found or len(found) == 1:
            return RunView(self._engine, name if name in found else found[0])
        if found:
            raise KeyError(f"{len(found)} runs begin with {name!r}")
        raise KeyError(
            f"the engine holds no run {name!r}; one that is idle comes back with its client's "
            f"next request"
        )

    def __iter__(self) -> Iterator[str]:
        # With an @: states that are made beside a run, for a moment.
        return iter([name for name in self._engine.runs if "@" not in name])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        if not len(self):
            return "The engine holds no runs."
        return "\n".join(repr(run) for run in self.values())

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)


class RunView:
    """A run as it is at the moment of each look."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.id = name

    @property
    def _run(self) -> Run:
        _on_the_main_thread()
        try:
            return self._engine.runs[self.id]
        except KeyError:
            raise LookupError(
                f"run {self.id} is not in the engine now; it comes back with its client's next "
                f"request"
            ) from None

    @property
    def step(self) -> int:
        """Steps that the optimizer has made."""
        return self._run.step

    @property
    def base_model(self) -> str:
        return self._run.base.name

    @property
    def lora(self) -> LoraSpec:
        return self._run.lora

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return self._run.adapter.weights.numel()

    @property
    def has_gradients(self) -> bool:
        """Whether gradients were accumulated since the last step; without, all are zero."""
        return self._run.has_gradients

    @property
    def adapter(self) -> AdapterView:
        """The layers that are trained, by their paths in the model."""
        return AdapterView(self)

    def __repr__(self) -> str:
        return (
            f"Run {self.id}: step {self.step}, rank {self.lora.rank} on {self.base_model}, "
            f"{self.parameters:,} parameters"
        )


class AdapterView(Mapping[str, "LayerView"]):
    """The layers of an adapter by path; an end of a path that no other has will do."""

    def __init__(self, run: RunView) -> None:
        self._view = run

    def __getitem__(self, path: str) -> LayerView:
        targets = self._view._run.adapter.targets
        found = [target for target in targets if f".{target.path}".endswith(f".{path}")]
        exact = [target for target in found if target.path == path]
        if len(exact or found) == 1:
            return LayerView(self._view, (exact or found)[0])
        if found:
            raise KeyError(f"{len(found)} layers end in {path!r}, such as {found[0].path}")
        raise KeyError(f"the adapter trains no layer {path!r}; it trains {targets[0].path}, ...")

    def __iter__(self) -> Iterator[str]:
        return iter([target.path for target in self._view._run.adapter.targets])

    def __len__(self) -> int:
        return len(self._view._run.adapter.targets)

    def __repr__(self) -> str:
        first = next(iter(self.values()))
        return f"{len(self)} layers of run {self._view.id}, such as\n{first!r}"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)


class LayerView:
    """One trained layer: W + scale * B A. Every tensor is a copy of what is there at the moment."""

    def __init__(self, run: RunView, target: Projection) -> None:
        self._view = run
        self._target = target
        self.path = target.path

    @property
    def scale(self) -> float:
        lora = self._view.lora
        return lora.alpha / lora.rank

    @property
    def A(self) -> torch.Tensor:  # noqa: N802 (as it is called in the paper)
        """(rank, in)"""
        return self._part("A", self._view._run.adapter.weights)

    @property
    def B(self) -> torch.Tensor:  # noqa: N802
        """(out, rank)"""
        return self._part("B", self._view._run.adapter.weights)

    @property
    def grad_A(self) -> torch.Tensor:  # noqa: N802
        """The gradient that was accumulated since the last step; zeros right after one."""
        return self._part("A", self._view._run.adapter.gradients)

    @property
    def grad_B(self) -> torch.Tensor:  # noqa: N802
        return self._part("B", self._view._run.adapter.gradients)

    @property
    def exp_avg_A(self) -> torch.Tensor:  # noqa: N802
        """Adam's first moment, under the name that torch has for it."""
        return self._part("A", self._view._run.optimizer.mean)

    @property
    def exp_avg_B(self) -> torch.Tensor:  # noqa: N802
        return self._part("B", self._view._run.optimizer.mean)

    @property
    def exp_avg_sq_A(self) -> torch.Tensor:  # noqa: N802
        """Adam's second moment."""
        return self._part("A", self._view._run.optimizer.square)

    @property
    def exp_avg_sq_B(self) -> torch.Tensor:  # noqa: N802
        return self._part("B", self._view._run.optimizer.square)

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), the base model's own, which stays as it is."""
        return self._weight.detach().to("cpu", copy=True)

    @property
    def delta(self) -> torch.Tensor:
        """(out, in), what training has added to the weight: scale * B A."""
        return self.scale * (self.B @ self.A)

    @property
    def delta_norm(self) -> float:
        """Its Frobenius norm, without forming it: |BA|^2 is the trace of (B'B)(AA')."""
        a, b = self.A.double(), self.B.double()
        square = float(((b.T @ b) * (a @ a.T)).sum())
        return self.scale * max(square, 0.0) ** 0.5

    @property
    def weight_norm(self) -> float:
        """The Frobenius norm of the base model's weight."""
        return float(torch.linalg.vector_norm(self._weight.detach().float()))

    def __repr__(self) -> str:
        rank, target = self._view.lora.rank, self._target
        return (
            f"{self.path}: A ({rank}, {target.in_features}), B ({target.out_features}, {rank}), "
            f"scale {self.scale:g}"
        )

    @property
    def _weight(self) -> torch.Tensor:
        layer = self._view._run.base.model.get_submodule(self.path)
        return getattr(layer, "base_layer", layer).weight

    def _part(self, side: str, flat: torch.Tensor) -> torch.Tensor:
        """The layer's part of a tensor that is laid out as the adapter's."""
        view = self._view._run.adapter.views[f"{self.path}.lora_{side}.weight"]
        start = view.storage_offset()
        return flat[start : start + view.numel()].view(view.shape).detach().to("cpu", copy=True)


def _on_the_main_thread() -> None:
    """Between two operations, that is; only there is nothing half done."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "the engine can be looked at from a cell, and not from a thread: it may be in the "
            "midst of an operation"
        )
