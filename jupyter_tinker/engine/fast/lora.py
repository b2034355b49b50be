"""A linear layer with a LoRA adapter or without, forward and backward.

With s the scale, a layer computes `y = x W^T + b + s (x A^T) B^T`, W and b frozen (LoRA,
arXiv:2106.09685). Knows nothing of the layers around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..adapter import Adapter, Views
from ..products import cross, linear, matmul

Lows = dict[str, torch.Tensor]  # s x A^T (N, r) of each adapted layer, by its path


@dataclass(frozen=True)
class Pair:
    """An adapter's part on one layer, and where its gradients are accumulated."""

    a: torch.Tensor  # (r, in)
    b: torch.Tensor  # (out, r)
    a_gradient: torch.Tensor
    b_gradient: torch.Tensor


@dataclass(frozen=True)
class Lora:
    """An adapter's parts by the paths of their layers."""

    pairs: Mapping[str, Pair]
    scale: float

    @classmethod
    def of(cls, adapter: Adapter, gradients: Views) -> Lora:
        views = adapter.views
        pairs = {}
        for target in adapter.targets:
            a, b = (f"{target.path}.{side}.weight" for side in ("lora_A", "lora_B"))
            pairs[target.path] = Pair(views[a], views[b], gradients[a], gradients[b])
        return cls(pairs, adapter.spec.scale)


class Linear:
    """A frozen linear layer; an adapter may have a part on it."""

    def __init__(self, path: str, module: nn.Linear) -> None:
        self.path = path
        self.weight = module.weight.detach()  # (out, in)
        self.bias = None if module.bias is None else module.bias.detach()

    def forward(
        self, x: torch.Tensor, lora: Lora, lows: Lows, plus: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(N, in) -> (N, out), added to `plus`. Puts into `lows` what `backward` asks for."""
        y = linear(x, self.weight, self.bias, plus)
        if (pair := lora.pairs.get(self.path)) is None:
            return y
        lows[self.path] = low = linear(x, pair.a).mul_(lora.scale)  # (N, r)
        return y.addmm_(low, pair.b.t())

    def backward(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        lora: Lora,
        lows: Lows,
        plus: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The input's gradient (N, in), added to `plus`; adds to those of the adapter. `dy` is
        (N, out), and `x` was the input."""
        dx = matmul(dy, self.weight, plus)
        if (pair := lora.pairs.get(self.path)) is None:
            return dx
        d_low = matmul(dy, pair.b).mul_(lora.scale)  # (N, r)
        pair.b_gradient.add_(cross(lows[self.path], dy).t())
        pair.a_gradient.add_(cross(d_low, x))
        return dx.addmm_(d_low, pair.a)
