"""Matrix products with a weight that is laid out once for the processor.

On the CPU oneDNN multiplies with a weight in its own blocked layout two to four times as fast as
with the plain one. The layout costs the weight's memory again, so it is made for sampling only,
which reads every weight for every token. Knows nothing of models or adapters.
"""

from __future__ import annotations

from collections.abc import Callable

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
        own = _pack(weight) if pack else None
        self.packed = own is not None
        self._weight = weight if own is None else own
        self._bias = bias
        self._product = products.linear if own is None else products.onednn
        self._wide: Callable[..., torch.Tensor] | None = None
        if wide and weight.dtype != torch.float32:
            self._wide = products.wide if own is None else products.onednn_wide

    def __call__(self, x: torch.Tensor, plus: torch.Tensor | None = None) -> torch.Tensor:
        """(..., in) -> (..., out); with `plus`, of that shape, added."""
        if not self.packed and x.dim() > 2:
            rows = self(x.flatten(0, -2), None if plus is None else plus.flatten(0, -2))
            return rows.unflatten(0, x.shape[:-1])
        if self.packed and x.numel() == x.shape[-1]:
            # A row alone goes another way through oneDNN, on which its last bits may come out
            # otherwise than among others.
            twice = None if plus is None else torch.stack([plus, plus])
            return self._multiply(x.expand(2, *x.shape), twice)[0]
        return self._multiply(x, plus)

    def _multiply(self, x: torch.Tensor, plus: torch.Tensor | None) -> torch.Tensor:
        if self._wide is None:
            return self._product(x, self._weight, self._bias, plus)
        y = self._wide(x, self._weight, self._bias)
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
