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
# What is updated at once, of weights and moments: on the CPU it stays in the caches, and what is
# remembered of it needs no fresh pages.
_STEP_SLICE = {"cpu": 1 << 18, "cuda": 1 << 24}
# A norm below is far from where its square is beyond float32.
_SAFE = 1e18


def norm(flat: torch.Tensor) -> float:
    """The global L2 norm."""
    return float(_norm(flat))


def _norm(flat: torch.Tensor) -> torch.Tensor:
    out = flat.new_empty(())
    _norm_into(out, flat, flat.new_empty(_parts(len(flat))))
    return out


def _parts(size: int) -> int:
    return size // _NORM_SLICE + 1


def _norm_into(out: torch.Tensor, flat: torch.Tensor, parts: torch.Tensor) -> None:
    """The norm of `flat`; `parts` is memory for those of its slices, of which it has `_parts`."""
    whole = len(flat) // _NORM_SLICE * _NORM_SLICE
    parts = parts[: _parts(len(flat))]
    torch.linalg.vector_norm(flat[:whole].view(-1, _NORM_SLICE), dim=1, out=parts[:-1])
    torch.linalg.vector_norm(flat[whole:], out=parts[-1])
    torch.linalg.vector_norm(parts, out=out)


class AdamW:
    """The two moments, and the number of steps behind them."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.mean = torch.zeros_like(weights)  # exp_avg in torch's words
        self.square = torch.zeros_like(weights)  # exp_avg_sq
        self.count = torch.zeros((), device=weights.device)  # float32: what the fused kernel takes

    def step(
        self, weights: torch.Tensor, gradients: torch.Tensor, params: AdamParams, scale: float = 1.0
    ) -> float:
        """Change `weights` by `scale` times `gradients`, whose norm is finite and which are left as
        they are; the size of the change. If that is not finite, or memory runs out, nothing has
        changed."""
        if self._stays_finite(weights, gradients, params):
            return self._step(weights, gradients, params, scale)
        state = (weights, self.mean, self.square, self.count)
        before = [tensor.clone() for tensor in state]
        size = math.nan
        try:
            size = self._step(weights, gradients, params, scale)
        finally:
            if not math.isfinite(size):
                for tensor, old in zip(state, before, strict=True):
                    tensor.copy_(old)
        return size

    def _stays_finite(
        self, weights: torch.Tensor, gradients: torch.Tensor, params: AdamParams
    ) -> bool:
        """Whether a bound shows that neither weights nor the size of the change get too large.

        With m and g the largest of means and gradients, a step adds at most lr max(m, g) /
        ((1 - beta1) eps). Squares were in the norm of the gradients, and that was finite.
        """
        weight, mean, gradient = map(_largest, (weights, self.mean, gradients))
        change = params.learning_rate * max(mean, gradient) / ((1 - params.beta1) * params.eps)
        reached = weight * (1 + params.learning_rate * params.weight_decay) + change
        return reached * math.sqrt(len(weights)) < _SAFE

    def _step(
        self, weights: torch.Tensor, gradients: torch.Tensor, params: AdamParams, scale: float
    ) -> float:
        state = (weights, gradients, self.mean, self.square)
        most = _STEP_SLICE.get(weights.device.type, _STEP_SLICE["cuda"])
        slices = list(zip(*(tensor.split(most) for tensor in state), strict=True))
        # All memory, before anything is changed: it may run out.
        longest = min(len(weights), most)
        before, scaled = weights.new_empty(longest), weights.new_empty(longest)
        sizes, parts = weights.new_empty(len(slices)), weights.new_empty(_parts(longest))
        size, count = weights.new_empty(()), self.count.clone()
        for number, (own, gradient, mean, square) in enumerate(slices):
            old = before[: len(own)].copy_(own)
            adamw(
                [own],
                [torch.mul(gradient, scale, out=scaled[: len(own)])],
                [mean],
                [square],
                [],
                [count.copy_(self.count)],
                fused=True,
                amsgrad=False,
                maximize=False,
                lr=params.learning_rate,
                beta1=params.beta1,
                beta2=params.beta2,
                eps=params.eps,
                weight_decay=params.weight_decay,
            )
            _norm_into(sizes[number], old.sub_(own), parts)
        self.count += 1
        return float(torch.linalg.vector_norm(sizes, out=size))


def _largest(flat: torch.Tensor) -> float:
    smallest, largest = torch.aminmax(flat)
    return max(-float(smallest), float(largest))


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
