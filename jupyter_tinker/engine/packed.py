"""Matrix products with a weight that is laid out once for the processor.

On the CPU oneDNN multiplies with a weight in its own blocked layout two to four times as fast as
with the plain one. The layout costs the weight's memory again, so it is made for sampling only,
which reads every weight for every token. Knows nothing of models or adapters.
"""

from __future__ import annotations

import torch

from . import products


class Linear:
    """`x W^T + bias`, for inference."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        pack: bool = True,
        wide: bool = False,
    ) -> None:
        """`pack`: whether another layout is made, where there is one; `wide`: whether what comes
        out is float32, whatever the weight is."""
        self._widened = wide and weight.dtype != torch.float32
        self.packed = _pack(weight) if pack else None
        self.plain = weight if self.packed is None else None  # (out, in)
        self.bias = bias

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        """(..., in) -> (..., out); with `plus`, of that shape, added."""
        if self.plain is not None:
            rows = x.reshape(-1, x.shape[-1])
            y = self._multiply_plain(rows, None if plus is None else plus.view(len(rows), -1))
            return y.view(*x.shape[:-1], -1)
        if x.numel() == x.shape[-1]:
            # A row alone goes another way through oneDNN, on which its last bits may come out
            # otherwise than among others.
            twice = None if plus is None else torch.stack([plus, plus])
            return self._multiply(x.expand(2, *x.shape), twice)[0]
        return self._multiply(x, plus)

    def _multiply(self, x: torch.Tensor, plus: torch.Tensor | None) -> torch.Tensor:
        assert self.packed is not None
        if not self._widened:
            return products.onednn(x, self.packed, self.bias, plus)
        y = products.onednn_wide(x, self.packed, self.bias)
        return y if plus is None else y.add_(plus)

    def _multiply_plain(self, x: torch.Tensor, plus: torch.Tensor | None) -> torch.Tensor:
        assert self.plain is not None
        if not self._widened:
            return products.linear(x, self.plain, self.bias, plus)
        y = products.wide(x, self.plain, self.bias)
        return y if plus is None else y.add_(plus)


def _pack(weight: torch.Tensor) -> torch.Tensor | None:
    """The weight in oneDNN's layout; None where that is not to be had, or brings nothing."""
    if weight.device.type != "cpu" or not products.onednn_multiplies(weight.dtype):
        return None
    try:
        # What torch.compile itself uses for frozen weights on the CPU.
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    except (AttributeError, RuntimeError):
        return None
