"""Matrix products, by the fastest library that the device has for them.

On the CPU in float32 that is oneDNN, which uses the widest vectors of every maker's processors; MKL
does so on Intel's alone. A GPU sums products of bfloat16 in float32, and can leave it at that.
Knows nothing of models. None of the products has a gradient.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    plus: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x W^T + bias + plus`: (N, in) and (out, in) -> (N, out)."""
    if not _has_onednn(x):
        if plus is not None and bias is None:
            return torch.addmm(plus, x, weight.t())
        y = F.linear(x, weight, bias)
        return y if plus is None else y.add_(plus)
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")


def matmul(x: torch.Tensor, weight: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
    """`x W + plus`: (N, out) and (out, in) -> (N, in)."""
    return linear(x, weight.t(), plus=plus)


def add_cross_(
    into: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Adds `scale x^T y`, (N, m) and (N, n), to a float32 tensor of (m, n)."""
    if _widens(x):
        return torch.addmm(into, x.t(), y, out_dtype=torch.float32, alpha=scale, out=into)
    if x.shape[1] > y.shape[1]:  # on the CPU in this order the faster one
        return into.add_(linear(y.t(), x.t()).t(), alpha=scale)
    return into.add_(linear(x.t(), y.t()), alpha=scale)


def wide(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x W^T + bias` in float32: (N, in) and (out, in) -> (N, out)."""
    if not _widens(x):
        return linear(x, weight, bias).float()
    y = torch.mm(x, weight.t(), out_dtype=torch.float32)
    return y if bias is None else y.add_(bias)


def _has_onednn(x: torch.Tensor) -> bool:
    usable = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return usable and _onednn_multiplies()


def _widens(x: torch.Tensor) -> bool:
    return x.device.type == "cuda" and x.dtype == torch.bfloat16 and _cuda_widens()


@cache
def _cuda_widens() -> bool:
    """Whether this build of torch gives products in a wider type than that of their factors."""
    x = torch.ones(2, 2, dtype=torch.bfloat16, device="cuda")
    y = torch.ones(2, 2, device="cuda")
    try:
        torch.addmm(y, x, x, out_dtype=torch.float32, alpha=2.0, out=y)
        return bool((torch.mm(x, x, out_dtype=torch.float32) + y == 7).all())
    except (TypeError, RuntimeError):
        return False


@cache
def _onednn_multiplies() -> bool:
    """Whether this build of torch has the products that are used here."""
    x, weight = torch.ones(2, 3), torch.ones(3, 2)
    try:
        y = torch.ops.mkldnn._linear_pointwise(x, weight.t(), None, "none", [], "")
        y = torch.ops.mkldnn._linear_pointwise.binary(x, y, weight.t(), None, "add")
    except (AttributeError, RuntimeError):
        return False
    return bool((y == 6).all())
