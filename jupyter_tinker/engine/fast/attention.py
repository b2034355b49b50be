"""Causal attention within the sequences of one stream of tokens.

Torch's fused kernels and their own gradients do the work. On a GPU, in bfloat16, flash attention
takes sequences of any lengths at once; elsewhere those of one length go together. Knows nothing of
projections or positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Protocol

import torch
import torch.nn.functional as F
from torch.utils import deterministic

from ..kv_cache import Step

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (N, heads, D), keys and values have fewer
Groups = list[tuple[int, int]]  # how many neighbouring sequences have which length

_FLASH_HEAD_SIZES = range(8, 257, 8)


@dataclass(frozen=True)
class Spans:
    """Sequences that lie one behind the other."""

    groups: Groups
    longest: int  # at most
    ends: torch.Tensor  # (1 + sequences,) int32: where each begins and the last one ends
    positions: torch.Tensor  # (N,) of every token in its own sequence

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Spans:
        groups = [(len(list(same)), length) for length, same in groupby(lengths)]
        ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        positions = torch.cat([torch.arange(length) for length in lengths])
        return cls(groups, max(lengths), ends.to(device), positions.to(device))


class Attention(Protocol):
    """What N tokens see of those before them in their own sequence."""

    out: torch.Tensor  # (N, heads * D)

    def backward(self, d_out: torch.Tensor) -> Qkv:
        """The gradients of queries, keys and values, in their type. Once."""


def suited_type(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """That of queries, keys and values from where they are turned, where they come in `dtype`: on
    the CPU what turns them and attends to them takes longer in bfloat16 than in float32."""
    return torch.float32 if device.type == "cpu" else dtype


def suited(x: torch.Tensor) -> torch.Tensor:
    """In that type."""
    return x.to(suited_type(x.device, x.dtype))


def takes_any_lengths(head_size: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the lengths of sequences may change without another call."""
    return head_size in _FLASH_HEAD_SIZES and _has_flash(device, dtype)


def attend(qkv: Qkv, spans: Spans, scale: float, *, keep: bool) -> Attention:
    """`keep`: whether `backward` will be called."""
    q = qkv[0]
    if takes_any_lengths(q.shape[-1], q.device, q.dtype):
        return _Flash(qkv, spans, scale)
    return _Grouped(qkv, spans, scale, keep=keep)


class _Grouped:
    """Sequences of one length together."""

    def __init__(self, qkv: Qkv, spans: Spans, scale: float, *, keep: bool) -> None:
        self._calls: list[tuple[Qkv, torch.Tensor]] = []
        parts = []
        start = 0
        for count, length in spans.groups:
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
        self.out = _joined(parts).flatten(1)

    def backward(self, d_out: torch.Tensor) -> Qkv:
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


class _Flash:
    """All sequences at once (FlashAttention-2, arXiv:2307.08691)."""

    def __init__(self, qkv: Qkv, spans: Spans, scale: float) -> None:
        self._qkv, self._scale = qkv, scale
        self._where = (spans.ends, spans.ends, spans.longest, spans.longest, 0.0, True)
        seen, *self._left, _ = torch.ops.aten._flash_attention_forward(
            *qkv, *self._where, False, scale=scale
        )
        self._seen = seen  # (N, heads, D)
        self.out = seen.flatten(1)

    def backward(self, d_out: torch.Tensor) -> Qkv:
        sums, *random = self._left
        with _the_same_each_time():
            dq, dk, dv = torch.ops.aten._flash_attention_backward(
                d_out.view_as(self._seen),
                *self._qkv,
                self._seen,
                sums,
                *self._where,
                *random,
                scale=self._scale,
            )
        return dq, dk, dv


def of_rows(qkv: Qkv, access: Step, scale: float) -> torch.Tensor:
    """Of one token a row, (B, heads, D), on what its row holds of keys and values, (B, key heads,
    columns, D), laid out token by token -> (B, heads, D)."""
    q, *rows = qkv
    keys, values = (x.transpose(1, 2).flatten(0, 1) for x in rows)
    spans = access.spans
    return torch.ops.aten._flash_attention_forward(
        q,
        keys,
        values,
        spans.new,
        spans.rows,
        1,
        access.columns,
        0.0,
        False,
        False,
        scale=scale,
        seqused_k=spans.seen,
        **_unsplit(),
    )[0]


@cache
def _unsplit() -> dict[str, int]:
    """Where the kernel can be told so, it does not split a row by what else there is to do: then
    the row's numbers do not depend on the others."""
    arguments = torch.ops.aten._flash_attention_forward.default._schema.arguments
    return {"num_splits": 1} if any(a.name == "num_splits" for a in arguments) else {}


@contextmanager
def _the_same_each_time() -> Iterator[None]:
    """The kernel adds in any order, unless all of torch is to be deterministic; which fills new
    memory, too, if it is not told to leave that."""
    mode, fills = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = fills


@cache
def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this GPU, and this build of torch, have the kernel."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    x = torch.ones(2, 1, 8, dtype=dtype, device=device)
    try:
        _Flash((x, x, x), Spans.of([2], device), 1.0).backward(x.flatten(1))
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True


def _as_rows(x: torch.Tensor) -> torch.Tensor:
    """(count, heads, length, D) -> (count * length, heads, D)"""
    return x.transpose(1, 2).flatten(0, 1)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
