"""Linear layers that read the same input, with LoRA adapters on any of them, forward and backward.

With s the scale, a layer computes `y = x W^T + b + s (x A^T) B^T`, W and b frozen (LoRA,
arXiv:2106.09685). Knows nothing of the layers around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..adapter import Adapter
from ..products import linear, matmul

Lows = dict[str, torch.Tensor]  # x A^T (N, r) of each adapted layer, by its path


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
    def of(cls, adapter: Adapter) -> Lora:
        views, gradients = adapter.views, adapter.gradient_views
        pairs = {}
        for target in adapter.targets:
            a, b = (f"{target.path}.{side}.weight" for side in ("lora_A", "lora_B"))
            pairs[target.path] = Pair(views[a], views[b], gradients[a], gradients[b])
        return cls(pairs, adapter.spec.alpha / adapter.spec.rank)


class Linears:
    """The layers of `modules`, by their paths, as one product whose columns are theirs in turn."""

    def __init__(self, modules: Mapping[str, nn.Linear]) -> None:
        self.weight = _joined([module.weight for module in modules.values()])  # (out, in)
        self.bias = _joined_biases(list(modules.values()))
        self.columns: dict[str, slice] = {}
        start = 0
        for path, module in modules.items():
            self.columns[path] = slice(start, start + module.out_features)
            start += module.out_features

    def forward(self, x: torch.Tensor, lora: Lora) -> tuple[torch.Tensor, Lows]:
        """(N, in) -> (N, out), and what `backward` asks for."""
        y = linear(x, self.weight, self.bias)
        lows: Lows = {}
        for path, columns in self.columns.items():
            if (pair := lora.pairs.get(path)) is not None:
                lows[path] = linear(x, pair.a)
                y[:, columns].addmm_(lows[path], pair.b.t(), alpha=lora.scale)
        return y, lows

    def backward(self, dy: torch.Tensor, x: torch.Tensor, lows: Lows, lora: Lora) -> torch.Tensor:
        """The input's gradient (N, in); adds to those of the adapters. `dy` is (N, out), `x` the
        input and `lows` what `forward` gave."""
        dx = matmul(dy, self.weight)
        for path, columns in self.columns.items():
            if (pair := lora.pairs.get(path)) is not None:
                own, low = dy[:, columns], lows[path]
                d_low = (own @ pair.b).mul_(lora.scale)  # (N, r)
                pair.b_gradient.addmm_(own.t(), low, alpha=lora.scale)
                pair.a_gradient.addmm_(d_low.t(), x)
                dx.addmm_(d_low, pair.a)
        return dx


def _joined(weights: Sequence[nn.Parameter]) -> torch.Tensor:
    """One tensor of all rows. The parameters become views of it, so that it costs no memory."""
    if len(weights) == 1:
        return weights[0].detach()
    joined = torch.cat([weight.detach() for weight in weights])
    parts = joined.split([len(weight) for weight in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.data = part
    return joined


def _joined_biases(modules: Sequence[nn.Linear]) -> torch.Tensor | None:
    if all(module.bias is None for module in modules):
        return None
    zeros = [module.weight.new_zeros(module.out_features) for module in modules]
    biases = zip(modules, zeros, strict=True)
    return torch.cat([zero if m.bias is None else m.bias.detach() for m, zero in biases])
