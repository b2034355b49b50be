"""AdamW on one flat tensor, as `torch.optim.AdamW` computes it; every field is honoured every step.

Knows nothing of adapters or models.
"""

from __future__ import annotations

import math

import torch
from torch.optim.adamw import adamw

from ..wire.ops import AdamParams, OpError

# Below, float32 would round it to zero, and a parameter without gradients would become 0 / 0.
_SMALLEST_EPS = 1e-38


# float32 sums over millions of squares drift; sums over slices, then over their norms, do not.
_NORM_SLICE = 1 << 14


def norm(flat: torch.Tensor) -> float:
    """The global L2 norm."""
    return float(torch.nn.utils.get_total_norm(flat.split(_NORM_SLICE)))


class AdamW:
    """The two moments, and the number of steps behind them."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.mean = torch.zeros_like(weights)  # exp_avg in torch's words
        self.square = torch.zeros_like(weights)  # exp_avg_sq
        self.count = torch.zeros((), device=weights.device)  # float32: what the fused kernel takes

    def step(self, weights: torch.Tensor, gradients: torch.Tensor, params: AdamParams) -> float:
        """Change `weights`; the size of the change. If that is not finite, or this raises, nothing
        has changed."""
        state = (weights, self.mean, self.square, self.count)
        before = [tensor.clone() for tensor in state]
        size = math.nan
        try:
            adamw(
                [weights],
                [gradients],
                [self.mean],
                [self.square],
                [],
                [self.count],
                fused=True,
                amsgrad=False,
                maximize=False,
                lr=params.learning_rate,
                beta1=params.beta1,
                beta2=params.beta2,
                eps=params.eps,
                weight_decay=params.weight_decay,
            )
            size = norm(weights - before[0])
        finally:
            if not math.isfinite(size):
                for tensor, old in zip(state, before, strict=True):
                    tensor.copy_(old)
        return size


def check(params: AdamParams) -> None:
    """Refuses what AdamW is not defined for, by the field's name."""
    for name in ("learning_rate", "weight_decay", "grad_clip_norm"):
        value = getattr(params, name)
        if not (math.isfinite(value) and value >= 0):
            raise OpError(f"{name} is {value}; it must be a finite number of at least 0")
    for name in ("beta1", "beta2"):
        value = getattr(params, name)
        if not 0 <= value < 1:
            raise OpError(f"{name} is {value}; it must be at least 0 and below 1")
    if not (math.isfinite(params.eps) and params.eps >= _SMALLEST_EPS):
        raise OpError(
            f"eps is {params.eps}; it must be a finite number of at least {_SMALLEST_EPS}"
        )
