"""Matrix products, by the fastest library that the device has for them.

On the CPU that is oneDNN, which uses the widest vectors of every maker's processors; MKL does so on
Intel's alone, where it is the faster one in float32. Whatever the type, sums are taken in float32
and rounded once: a small part that is added to a rounded number of bfloat16 would be lost, each
time. Knows nothing of models. None of the products has a gradient.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    plus: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x W^T + bias + plus`: (N, in) and (out, in) -> (N, out)."""
    if _by_onednn(x):
        return onednn(x, weight, bias, plus)
    if plus is None:
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.addmm(plus, x, weight.t())
    return wide(x, weight, bias).add_(plus).to(x.dtype)


def linear_(
    plus: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`linear`, which may overwrite `plus`."""
    if bias is None and not _by_onednn(x):
        return plus.addmm_(x, weight.t())
    return linear(x, weight, bias, plus)


def onednn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    plus: torch.Tensor | None = None,
    sign: str = "add",
) -> torch.Tensor:
    """`x W^T + bias + plus`, or `- plus` with the sign "sub", by oneDNN, in whose own layout the
    weight may be."""
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, sign)


def matmul(x: torch.Tensor, weight: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
    """`x W + plus`: (N, out) and (out, in) -> (N, in); may overwrite `plus`."""
    return linear(x, weight.t()) if plus is None else linear_(plus, x, weight.t())


def add_cross_(
    into: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Adds `scale x^T y`, (N, m) and (N, n), to a float32 tensor of (m, n)."""
    if _widens(x):
        return torch.addmm(into, x.t(), y, out_dtype=torch.float32, alpha=scale, out=into)
    if x.dtype == into.dtype and not _by_onednn(x):
        return into.addmm_(x.t(), y, alpha=scale)
    if x.shape[1] > y.shape[1]:  # by oneDNN in this order the faster one
        return into.add_(linear(y.t(), x.t()).t(), alpha=scale)
    return into.add_(linear(x.t(), y.t()), alpha=scale)


def wide(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x W^T + bias` in float32: (N, in) and (out, in) -> (N, out)."""
    if _widens(x):
        y = torch.mm(x, weight.t(), out_dtype=torch.float32)
        return y if bias is None else y.add_(bias)
    if x.dtype != torch.float32 and _by_onednn(x):
        return onednn_wide(x, weight, bias)
    return linear(x, weight, bias).float()


def onednn_wide(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`wide` by oneDNN, which gives products of bfloat16 in bfloat16 only: once more for what their
    rounding took away."""
    rounded = onednn(x, weight, bias)
    return rounded.float().add_(onednn(x, weight, bias, rounded, "sub"))


def _by_onednn(x: torch.Tensor) -> bool:
    if x.device.type != "cpu" or x.numel() == 0 or not onednn_multiplies(x.dtype):
        return False
    return x.dtype != torch.float32 or not _mkl_is_at_home()


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
def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, has the products that are used here."""
    x, weight = torch.ones(2, 3, dtype=dtype), torch.ones(3, 2, dtype=dtype)
    try:
        y = onednn(x, weight.t())
        twice = onednn(x, weight.t(), plus=y)
        none = onednn(x, weight.t(), None, y, "sub")
    except (AttributeError, RuntimeError):
        return False
    return bool((twice == 6).all() and (none == 0).all())


@cache
def _mkl_is_at_home() -> bool:
    """Whether this processor is of MKL's own maker."""
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in about
