"""One run's LoRA adapter on a shared base model.

The numbers live here, in one flat tensor with PEFT's parameters as views of it, and so do the
gradients. Knows nothing of losses or files, and not what computes with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from ..wire.ops import LoraSpec, OpError
from .base_model import BaseModel, Projection
from .logprobs import LowRank

Views = Mapping[str, torch.Tensor]  # parameters, or their gradients, by PEFT's names

_numbers = itertools.count()


class Adapter:
    """A's and B's of all adapted layers, their gradients, and their place in the base model."""

    def __init__(self, base: BaseModel, spec: LoraSpec) -> None:
        self.base = base
        self.spec = spec
        self.targets = targets(base, spec)
        # PEFT keys modules by this name, and module names may hold no dots, as a run's may.
        self.name = f"run_{next(_numbers)}"
        self._shapes = parameter_shapes(self.targets, spec.rank)
        size = sum(math.prod(shape) for shape in self._shapes.values())
        self.weights = torch.zeros(size, device=base.device)
        self.views: Views = dict(_views(self.weights, self._shapes))
        self.gradients, self.gradient_views = self.laid_out()
        self._copy: tuple[torch.Tensor, Views] | None = None  # in the type of the base model's
        self._draw_initial_weights()

    @property
    def trains_layers(self) -> bool:
        """Whether anything below the output layer is trained."""
        return any(target.part != "unembed" for target in self.targets)

    def output_adapter(self) -> LowRank | None:
        """The part on the output layer, if there is one."""
        pair = self._output_pair(self.views)
        return LowRank(*pair, scale=self.spec.scale) if pair else None

    def output_gradients(self, views: Views) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where among gradients that part has its own."""
        return self._output_pair(views)

    def as_the_base(self) -> Views:
        """The parameters as they are now, in the type of the base model's."""
        dtype = self.base.placement.torch_dtype
        if dtype == self.weights.dtype:
            return self.views
        if self._copy is None:
            self._copy = self.laid_out(dtype)
        numbers, views = self._copy
        numbers.copy_(self.weights)
        return views

    @property
    def kind(self) -> tuple[object, ...]:
        """Which adapters have the same layers, sizes and scale."""
        return self.spec.scale, *self._shapes.items()

    def laid_out(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Views]:
        """Zeros for as many numbers as the parameters, and views of them by the same names."""
        numbers = torch.zeros_like(self.weights, dtype=dtype)
        return numbers, dict(_views(numbers, self._shapes))

    def fill(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take over weights by their names."""
        for key, view in self.views.items():
            view.copy_(values[key])

    def _draw_initial_weights(self) -> None:
        """PEFT's own: uniform A, zero B. Drawn on the CPU: a seed means the same anywhere."""
        try:
            generator = torch.Generator().manual_seed(self.spec.seed)
        except (RuntimeError, OverflowError, ValueError):
            raise OpError(f"the seed {self.spec.seed} is not a 64-bit integer") from None
        for key, view in self.views.items():
            if ".lora_A." in key:
                values = torch.empty(view.shape)
                nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
                view.copy_(values)

    def _output_pair(self, views: Views) -> tuple[torch.Tensor, torch.Tensor] | None:
        for target in self.targets:
            if target.part == "unembed":
                return views[f"{target.path}.lora_A.weight"], views[f"{target.path}.lora_B.weight"]
        return None


def targets(base: BaseModel, spec: LoraSpec) -> list[Projection]:
    """The layers that `spec` asks to train, in the model's order."""
    wanted = {"attn": spec.train_attn, "mlp": spec.train_mlp, "unembed": spec.train_unembed}
    if not any(wanted.values()):
        raise OpError("the adapter trains nothing; set train_attn, train_mlp or train_unembed")
    chosen = [projection for projection in base.projections if wanted[projection.part]]
    for part, asked in wanted.items():
        if asked and not any(projection.part == part for projection in chosen):
            raise OpError(
                f"{type(base.model).__name__} has no linear layer for train_{part}; set it to false"
            )
    if spec.train_mlp and base.has_fused_experts:
        raise OpError(
            f"the experts of {type(base.model).__name__} cannot carry an adapter in this engine; "
            f"set train_mlp to false"
        )
    _check_rank(spec, chosen)
    return chosen


def _check_rank(spec: LoraSpec, chosen: list[Projection]) -> None:
    largest = min(min(target.in_features, target.out_features) for target in chosen)
    if not 1 <= spec.rank <= largest:
        raise OpError(
            f"rank {spec.rank} does not fit this base model; choose one from 1 to {largest}, the "
            f"smallest side of the layers to train"
        )
    if not (math.isfinite(spec.alpha) and spec.alpha > 0):
        raise OpError(f"alpha is {spec.alpha}; choose a positive number")


def parameter_shapes(targets: list[Projection], rank: int) -> dict[str, tuple[int, int]]:
    """The adapter's parameters, named as in PEFT without its prefix, in their fixed order."""
    shapes = {}
    for target in targets:
        shapes[f"{target.path}.lora_A.weight"] = (rank, target.in_features)
        shapes[f"{target.path}.lora_B.weight"] = (target.out_features, rank)
    return shapes


def _views(
    flat: torch.Tensor, shapes: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, torch.Tensor]]:
    offset = 0
    for key, shape in shapes.items():
        size = math.prod(shape)
        yield key, flat[offset : offset + size].view(shape)
        offset += size
