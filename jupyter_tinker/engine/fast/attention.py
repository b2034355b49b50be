"""Causal attention within the sequences of one stream of tokens.

Sequences of one length go together. Torch's fused kernel and its own gradient do the work; the way
back is a graph of that one call. Knows nothing of projections or positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (N, heads, D), keys and values have fewer
Groups = list[tuple[int, int]]  # how many neighbouring sequences have which length


def groups(lengths: Sequence[int]) -> Groups:
    """Of sequences that lie one behind the other."""
    return [(len(list(same)), length) for length, same in groupby(lengths)]


class Attention:
    """What N tokens see of those before them in their own sequence."""

    def __init__(self, qkv: Qkv, of: Groups, scale: float, *, keep: bool) -> None:
        """`keep`: whether `backward` will be called, once."""
        self._calls: list[tuple[Qkv, torch.Tensor]] = []
        parts = []
        start = 0
        for count, length in of:
            end = start + count * length
            q, k, v = (
                x[start:end].unflatten(0, (count, length)).transpose(1, 2).requires_grad_(keep)
                for x in qkv
            )
            with torch.set_grad_enabled(keep):
                seen = F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, scale=scale, enable_gqa=True
                )  # (count, heads, length, D)
            if keep:
                self._calls.append(((q, k, v), seen))
            parts.append(_as_rows(seen.detach()))
            start = end
        self.out = _joined(parts).flatten(1)  # (N, heads * D)

    def backward(self, d_out: torch.Tensor) -> Qkv:
        """The gradients of queries, keys and values."""
        parts = []
        start = 0
        for leaves, seen in self._calls:
            count, heads, length, size = seen.shape
            end = start + count * length
            own = d_out[start:end].view(count, length, heads, size).transpose(1, 2)
            parts.append([_as_rows(d) for d in torch.autograd.grad(seen, leaves, own)])
            start = end
        dq, dk, dv = map(_joined, zip(*parts, strict=True))
        return dq, dk, dv


def _as_rows(x: torch.Tensor) -> torch.Tensor:
    """(count, heads, length, D) -> (count * length, heads, D)"""
    return x.transpose(1, 2).flatten(0, 1)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
