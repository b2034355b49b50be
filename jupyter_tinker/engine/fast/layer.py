"""One decoder layer, forward and backward.

    mid = h + o(attention(rotate(norms(qkv(norm1(h))))))
    out = mid + down(act(gate(norm2(mid))) * up(norm2(mid)))

What is cheap to compute again is not kept. Knows nothing of the layers around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attention import Attention, Groups
from .lora import Linears, Lora, Lows
from .pointwise import Activation, RmsNorm, Rotary


@dataclass(frozen=True)
class Shape:
    """How queries, keys and values lie beside one another in the columns of one product."""

    heads: int
    key_heads: int
    size: int  # of a head

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, columns) -> (N, heads, D), and keys and values with their own number of heads."""
        each = qkv.unflatten(1, (-1, self.size))
        q, k, v = each.split([self.heads, self.key_heads, self.key_heads], dim=1)
        return q, k, v

    def rotated(self, qkv: torch.Tensor) -> torch.Tensor:
        """The view (N, heads + key heads, D) of queries and keys."""
        return qkv.unflatten(1, (-1, self.size))[:, : self.heads + self.key_heads]


@dataclass(frozen=True)
class Stream:
    """What all layers need to know of the tokens that go through them."""

    rotary: Rotary
    groups: Groups


@dataclass(frozen=True)
class HeadNorms:
    """Of queries and keys, before they are rotated."""

    q: RmsNorm
    k: RmsNorm


@dataclass(frozen=True)
class _Raw:
    """Queries and keys before their norms."""

    q: torch.Tensor
    k: torch.Tensor
    q_inverse: torch.Tensor
    k_inverse: torch.Tensor


@dataclass(frozen=True)
class Kept:
    """What the forward pass leaves for the backward pass."""

    h: torch.Tensor  # (N, H)
    h_inverse: torch.Tensor  # (N, 1)
    raw: _Raw | None
    attention: Attention
    mid: torch.Tensor  # (N, H)
    mid_inverse: torch.Tensor
    gate_up: torch.Tensor  # (N, 2 F)
    lows: Lows


@dataclass(frozen=True)
class Layer:
    """The frozen parts of a decoder layer."""

    norm1: RmsNorm
    qkv: Linears
    shape: Shape
    head_norms: HeadNorms | None
    scale: float  # of the attention's scores
    o: Linears
    norm2: RmsNorm
    gate_up: Linears
    activation: Activation
    down: Linears

    def forward(
        self, h: torch.Tensor, stream: Stream, lora: Lora, *, keep: bool
    ) -> tuple[torch.Tensor, Kept | None]:
        """(N, H) -> (N, H), and what `backward` asks for."""
        h_inverse = self.norm1.inverse_rms(h)
        qkv, lows = self.qkv.forward(self.norm1.forward(h, h_inverse), lora)
        raw = self._norm_heads_(qkv) if self.head_norms is not None else None
        stream.rotary.turn_(self.shape.rotated(qkv))
        attention = Attention(self.shape.split(qkv), stream.groups, self.scale, keep=keep)
        mid, o_lows = self.o.forward(attention.out, lora)
        mid.add_(h)
        mid_inverse = self.norm2.inverse_rms(mid)
        gate_up, gate_up_lows = self.gate_up.forward(self.norm2.forward(mid, mid_inverse), lora)
        gate, up = gate_up.chunk(2, dim=1)
        out, down_lows = self.down.forward(self.activation.forward(gate).mul_(up), lora)
        out.add_(mid)
        if not keep:
            return out, None
        lows = {**lows, **o_lows, **gate_up_lows, **down_lows}
        return out, Kept(h, h_inverse, raw, attention, mid, mid_inverse, gate_up, lows)

    def backward(self, d: torch.Tensor, kept: Kept, stream: Stream, lora: Lora) -> torch.Tensor:
        """The gradient (N, H) of what went in, in the place of that of what came out; adds to those
        of the adapters."""
        d = self._mlp_backward(d, kept, lora)
        return self._attention_backward(d, kept, stream, lora)

    def _mlp_backward(self, d: torch.Tensor, kept: Kept, lora: Lora) -> torch.Tensor:
        gate, up = kept.gate_up.chunk(2, dim=1)
        active = self.activation.forward(gate)
        d_product = self.down.backward(d, active * up, kept.lows, lora)
        d_gate_up = torch.empty_like(kept.gate_up)
        d_gate, d_up = d_gate_up.chunk(2, dim=1)
        torch.mul(d_product, active, out=d_up)
        d_gate.copy_(self.activation.backward(d_product.mul_(up), gate))
        x = self.norm2.forward(kept.mid, kept.mid_inverse)
        dx = self.gate_up.backward(d_gate_up, x, kept.lows, lora)
        return self.norm2.add_backward_(d, dx, kept.mid, kept.mid_inverse)

    def _attention_backward(
        self, d: torch.Tensor, kept: Kept, stream: Stream, lora: Lora
    ) -> torch.Tensor:
        d_attended = self.o.backward(d, kept.attention.out, kept.lows, lora)
        shape = self.shape
        columns = (shape.heads + 2 * shape.key_heads) * shape.size
        d_qkv = d.new_empty(len(d), columns)
        kept.attention.backward(d_attended, shape.split(d_qkv))
        stream.rotary.turn_back_(shape.rotated(d_qkv))
        if kept.raw is not None:
            self._heads_backward_(d_qkv, kept.raw)
        x = self.norm1.forward(kept.h, kept.h_inverse)
        dx = self.qkv.backward(d_qkv, x, kept.lows, lora)
        return self.norm1.add_backward_(d, dx, kept.h, kept.h_inverse)

    def _norm_heads_(self, qkv: torch.Tensor) -> _Raw:
        """Overwrites queries and keys with what their norms make of them."""
        assert self.head_norms is not None
        q, k, _ = self.shape.split(qkv)
        q_norm, k_norm = self.head_norms.q, self.head_norms.k
        raw = _Raw(q.clone(), k.clone(), q_norm.inverse_rms(q), k_norm.inverse_rms(k))
        q.copy_(q_norm.forward(raw.q, raw.q_inverse))
        k.copy_(k_norm.forward(raw.k, raw.k_inverse))
        return raw

    def _heads_backward_(self, d_qkv: torch.Tensor, raw: _Raw) -> None:
        assert self.head_norms is not None
        dq, dk, _ = self.shape.split(d_qkv)
        for norm, dy, x, inverse in (
            (self.head_norms.q, dq, raw.q, raw.q_inverse),
            (self.head_norms.k, dk, raw.k, raw.k_inverse),
        ):
            dy.copy_(norm.add_backward_(torch.zeros_like(x), dy, x, inverse))
