"""Matrix products, by the fastest library that the device has for them.

On the CPU in float32 that is oneDNN, which uses the widest vectors of every maker's processors; MKL
does so on Intel's alone. The one place that depends on the device; knows nothing of models.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x W^T + bias`: (N, in) and (out, in) -> (N, out). Has no gradient."""
    if x.numel() and _has_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def matmul(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`x W`: (N, out) and (out, in) -> (N, in). Has no gradient."""
    return linear(x, weight.t())


def _has_onednn(x: torch.Tensor) -> bool:
    usable = x.device.type == "cpu" and x.dtype == torch.float32
    return usable and torch.backends.mkldnn.is_available()
