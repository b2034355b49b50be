"""A run and its layers, as a person sees them from a notebook on the engine's kernel.

Tensors that are given out are copies on the CPU. Names that begin with an underscore lead to the
engine itself. Knows nothing of kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from ..wire.ops import LoraSpec
from .base_model import Projection
from .run import Run
from .wrappers import plain

if TYPE_CHECKING:
    from .engine import Engine


class RunView:
    """A run as it is at the moment of each look."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.id = name

    @property
    def _run(self) -> Run:
        on_the_main_thread()
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
        return self._view.lora.scale

    @property
    def A(self) -> torch.Tensor:
        """(rank, in)"""
        return self._part("A", self._view._run.adapter.weights)

    @property
    def B(self) -> torch.Tensor:
        """(out, rank)"""
        return self._part("B", self._view._run.adapter.weights)

    @property
    def grad_A(self) -> torch.Tensor:
        """The gradient that was accumulated since the last step; zeros right after one."""
        return self._part("A", self._view._run.adapter.gradients)

    @property
    def grad_B(self) -> torch.Tensor:
        return self._part("B", self._view._run.adapter.gradients)

    @property
    def exp_avg_A(self) -> torch.Tensor:
        """Adam's first moment, under the name that torch has for it."""
        return self._part("A", self._view._run.optimizer.mean)

    @property
    def exp_avg_B(self) -> torch.Tensor:
        return self._part("B", self._view._run.optimizer.mean)

    @property
    def exp_avg_sq_A(self) -> torch.Tensor:
        """Adam's second moment."""
        return self._part("A", self._view._run.optimizer.square)

    @property
    def exp_avg_sq_B(self) -> torch.Tensor:
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
        return plain(self._view._run.base.model.get_submodule(self.path)).weight

    def _part(self, side: str, flat: torch.Tensor) -> torch.Tensor:
        """The layer's part of a tensor that is laid out as the adapter's."""
        view = self._view._run.adapter.views[f"{self.path}.lora_{side}.weight"]
        start = view.storage_offset()
        return flat[start : start + view.numel()].view(view.shape).detach().to("cpu", copy=True)


def on_the_main_thread() -> None:
    """Between two operations, that is; only there is nothing half done."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "the engine can be looked at from a cell, and not from a thread: it may be in the "
            "midst of an operation"
        )
