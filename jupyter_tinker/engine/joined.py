"""Linear layers that read the same input, as one product, with the adapter of the moment.

For inference: one product of many columns takes less than several of few. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from . import packed


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to joined layers: `up(down(x))`."""

    down: packed.Linear
    up: packed.Linear


class Joined:
    """Layers side by side: (..., in) -> (..., sum of their out)."""

    def __init__(
        self,
        layers: Mapping[str, nn.Linear],
        *,
        pack: bool = True,
        wide: bool = False,
        adapters: torch.dtype | None = None,
    ) -> None:
        """`layers` by their paths; `pack`: whether the weights are kept once more, in a faster
        layout; `wide`: whether what comes out is float32, whatever the weights are; `adapters`: in
        which type these are multiplied, that of what comes out if not said."""
        self.paths = tuple(layers)
        weights = [layer.weight.detach() for layer in layers.values()]
        self.widths = [len(weight) for weight in weights]
        self.dtype = torch.float32 if wide else weights[0].dtype  # of what comes out
        self.adapters = adapters or self.dtype
        weight = _side_by_side(weights)
        self.linear = packed.Linear(weight, _bias(list(layers.values())), pack=pack, wide=wide)
        self.adapter: LowRank | None = None
        self._read: torch.Tensor | None = None  # what a part was last given, and what came of it
        self._made: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        """With `plus`, of the output's shape, added."""
        if self.adapter is None:
            return self.linear(x, plus)
        added = self.adapter.up(self.adapter.down(x.to(self.adapters)))
        if self.adapters == self.dtype:
            out = self.linear(x, added)
        else:
            out = self.linear(x).to(self.adapters).add_(added).to(self.dtype)
        return out if plus is None else out.add_(plus)

    def part(self, path: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """One of the layers, for a model that calls them one after the other with one tensor."""
        number = self.paths.index(path)
        start = sum(self.widths[:number])
        end = start + self.widths[number]
        last = number == len(self.paths) - 1

        def forward(x: torch.Tensor) -> torch.Tensor:
            made = self._made if x is self._read else None
            if made is None:
                made = self(x)
            # Not longer than for the others: a model has many layers.
            self._read, self._made = (None, None) if last else (x, made)
            return made[..., start:end]

        return self if len(self.paths) == 1 else forward

    def forget(self) -> None:
        """What was kept for other parts."""
        self._read = self._made = None

    def low_rank(self, views: Mapping[str, torch.Tensor], scale: float) -> LowRank | None:
        """An adapter's part on these layers, as a copy; None if it has none. `views` are its
        parameters by PEFT's names; the scale of what they add goes into the B's."""
        adapted = [path for path in self.paths if f"{path}.lora_A.weight" in views]
        if not adapted:
            return None
        a = torch.cat([views[f"{path}.lora_A.weight"] for path in adapted]).to(self.adapters)
        rank = len(a) // len(adapted)
        # Every layer takes its own columns of what all A's give.
        b = a.new_zeros(sum(self.widths), len(a))
        row = 0
        for path, width in zip(self.paths, self.widths, strict=True):
            if path in adapted:
                column = rank * adapted.index(path)
                own = b[row : row + width, column : column + rank]
                torch.mul(views[f"{path}.lora_B.weight"], scale, out=own)
            row += width
        return LowRank(packed.Linear(a, None), packed.Linear(b, None))


def join_(layers: list[nn.Linear]) -> None:
    """Lay the weights of layers one behind the other, so that they are also one weight."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    for layer, own in zip(
        layers, weight.split([len(layer.weight) for layer in layers]), strict=True
    ):
        layer.weight = nn.Parameter(own, requires_grad=False)


def _side_by_side(weights: list[torch.Tensor]) -> torch.Tensor:
    """As one weight; without a copy, if they lie so."""
    first = weights[0]
    storage, offset = first.untyped_storage(), first.storage_offset()
    for weight in weights:
        own = weight.untyped_storage().data_ptr(), weight.storage_offset()
        if own != (storage.data_ptr(), offset) or not weight.is_contiguous():
            return torch.cat(weights)
        offset += weight.numel()
    return first.as_strided((sum(map(len, weights)), first.shape[1]), (first.shape[1], 1))


def _bias(layers: list[nn.Linear]) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [
            layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
    )
