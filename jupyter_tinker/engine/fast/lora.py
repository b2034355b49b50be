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
from ..products import add_cross_, linear, linear_, matmul

Lows = dict[str, torch.Tensor]  # s x A^T (N, r) of each adapted layer, by its path


@dataclass(frozen=True)
class Pair:
    """An adapter's part on one layer, in the layer's type, and where its gradients are
    accumulated, in float32."""

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
        """An adapter's as it is now."""
        return cls.over(adapter, adapter.as_the_base(), gradients)

    @classmethod
    def over(cls, adapter: Adapter, views: Views, gradients: Views) -> Lora:
        """With the numbers of one like `adapter`."""
        pairs = {}
        for target in adapter.targets:
            a, b = (f"{target.path}.{side}.weight" for side in ("lora_A", "lora_B"))
            pairs[target.path] = Pair(views[a], views[b], gradients[a], gradients[b])
        return cls(pairs, adapter.spec.scale)

    def scaled(self, low: torch.Tensor) -> torch.Tensor:
        """In place."""
        return low if self.scale == 1.0 else low.mul_(self.scale)


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
        if (pair := lora.pairs.get(self.path)) is None:
            return linear(x, self.weight, self.bias, plus)
        lows[self.path] = low = lora.scaled(linear(x, pair.a))  # (N, r)
        y = linear_(linear(low, pair.b), x, self.weight, self.bias)
        return y if plus is None else y.add_(plus)

    def backward(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        lora: Lora,
        lows: Lows,
        plus: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The input's gradient (N, in), added to `plus`, which may be overwritten; adds to those of
        the adapter. `dy` is (N, out), and `x` was the input."""
        dx = matmul(dy, self.weight, plus)
        if (pair := lora.pairs.get(self.path)) is None:
            return dx
        d_low = lora.scaled(matmul(dy, pair.b))  # (N, r)
        add_cross_(pair.b_gradient, dy, lows[self.path])
        add_cross_(pair.a_gradient, d_low, x)
        return dx.addmm_(d_low, pair.a)
