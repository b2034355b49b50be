"""RMSNorm, rotary position embedding and gated activation, forward and backward.

Functions that end in `_` overwrite what they say. Sums are taken in float32, whatever the numbers
are. They know nothing of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

_CUDA_HAS_RMS_NORM = hasattr(torch.ops.aten, "_fused_rms_norm_backward")  # from torch 2.9 on

Gradient = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (dL/dy, x) -> dL/dx, over dL/dy


@dataclass(frozen=True)
class RmsNorm:
    """`x / rms(x) * gain` over the last dimension (arXiv:1910.07467)."""

    gain: torch.Tensor  # (H,)
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., H), for whom the root mean square itself is of no use."""
        return self.forward(x)[0]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(..., H) -> (..., H), and what the root mean square is the inverse of, (..., 1)."""
        if self._fuses(x):
            return torch.ops.aten._fused_rms_norm(x, self.gain.shape, self.gain, self.eps)
        exact = x.float()
        norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return self._scaled(exact, inverse).to(x.dtype), inverse

    def again(self, x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        """What `forward` gave first; `inverse` is what it gave besides."""
        if self._fuses(x):
            return self(x)
        return self._scaled(x.float(), inverse).to(x.dtype)

    def add_backward_(
        self, into: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, inverse: torch.Tensor
    ) -> torch.Tensor:
        """`into` plus dL/dx; overwrites both `into` and `dy`, the gradient of the output.

        With u = gain * dy: dL/dx = (u - x * inverse^2 * mean(u * x)) * inverse.
        """
        if self._fuses(x):
            dx, _ = torch.ops.aten._fused_rms_norm_backward(
                dy, x, self.gain.shape, inverse, self.gain, [True, False]
            )
            return into.add_(dx)
        exact, u = x.float(), dy.float().mul_(self._exact_gain)
        along = torch.mul(u, exact).sum(-1, keepdim=True).div_(x.shape[-1])
        out = into.float().addcmul_(u, inverse)
        return out.addcmul_(exact, along.mul_(inverse.pow(3)), value=-1).to(into.dtype)

    @cached_property
    def _exact_gain(self) -> torch.Tensor:
        return self.gain.float()

    def _scaled(self, exact: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        return torch.mul(exact, inverse).mul_(self._exact_gain)

    def _fuses(self, x: torch.Tensor) -> bool:
        """Whether one kernel of torch does it all."""
        return x.device.type == "cuda" and x.dtype == self.gain.dtype and _CUDA_HAS_RMS_NORM


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of N tokens (arXiv:2104.09864), pairs half a head apart."""

    cos: torch.Tensor  # (N, 1, D / 2)
    sin: torch.Tensor

    def turn_(self, x: torch.Tensor) -> None:
        """Rotates (N, heads, D) in place."""
        self._turn(x, self.sin)

    def turn_back_(self, dx: torch.Tensor) -> None:
        """Makes the gradient of what was rotated that of what it was before."""
        self._turn(dx, -self.sin)

    def _turn(self, x: torch.Tensor, sin: torch.Tensor) -> None:
        first, second = x.chunk(2, dim=-1)
        other = first * sin
        first.mul_(self.cos).addcmul_(second, sin, value=-1)
        second.mul_(self.cos).add_(other)


@dataclass(frozen=True)
class Activation:
    """A function of one variable, and the way back through it."""

    forward: Callable[[torch.Tensor], torch.Tensor]
    backward_: Gradient


def _silu() -> Activation:
    def backward_(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.silu_backward(dy, x, grad_input=dy)

    return Activation(F.silu, backward_)


def _gelu(approximate: str) -> Activation:
    def backward_(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.gelu_backward(dy, x, approximate=approximate, grad_input=dy)

    return Activation(lambda x: F.gelu(x, approximate=approximate), backward_)


ACTIVATIONS = (_silu(), _gelu("tanh"), _gelu("none"))
