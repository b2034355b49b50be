"""Matrix products, by the fastest library that the device has for them.

On the CPU in float32 that is oneDNN, which uses the widest vectors of every maker's processors; MKL
does so on Intel's alone. The one place that depends on the device; knows nothing of models. None of
the products has a gradient.
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
        y = F.linear(x, weight, bias)
        return y if plus is None else y.add_(plus)
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")


def matmul(x: torch.Tensor, weight: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
    """`x W + plus`: (N, out) and (out, in) -> (N, in)."""
    return linear(x, weight.t(), plus=plus)


def cross(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`x^T y`: (N, few) and (N, many) -> (few, many), in this order the faster one."""
    return linear(x.t(), y.t())


def _has_onednn(x: torch.Tensor) -> bool:
    usable = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    return usable and _onednn_multiplies()


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
