"""One decoder layer, forward and backward.

    mid = h + o(attention(rotate(norms(q(x), k(x))), v(x))),  x = norm1(h)
    out = mid + down(act(gate(norm2(mid))) * up(norm2(mid)))

What is cheap to compute again is not kept. Knows nothing of the layers around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attention import Attention, Spans, attend, suited
from .lora import Linear, Lora, Lows
from .pointwise import Activation, RmsNorm, Rotary


@dataclass(frozen=True)
class Stream:
    """What all layers need to know of the tokens that go through them."""

    rotary: Rotary
    spans: Spans


@dataclass(frozen=True)
class HeadNorms:
    """Of queries and keys, head by head, before they are rotated."""

    q: RmsNorm
    k: RmsNorm


@dataclass(frozen=True)
class Kept:
    """What the forward pass leaves for the backward pass."""

    h: torch.Tensor  # (N, H)
    h_inverse: torch.Tensor  # (N, 1)
    raw: tuple[torch.Tensor, torch.Tensor] | None  # queries and keys before their norms
    attention: Attention
    mid: torch.Tensor  # (N, H)
    mid_inverse: torch.Tensor
    gate: torch.Tensor  # (N, F)
    up: torch.Tensor
    lows: Lows


@dataclass(frozen=True)
class Layer:
    """The frozen parts of a decoder layer."""

    norm1: RmsNorm
    q: Linear
    k: Linear
    v: Linear
    head_size: int
    head_norms: HeadNorms | None
    scale: float  # of the attention's scores
    o: Linear
    norm2: RmsNorm
    gate: Linear
    up: Linear
    activation: Activation
    down: Linear

    @property
    def paths(self) -> set[str]:
        """Of its linear layers."""
        return {linear.path for linear in self._linears}

    @property
    def parameters(self) -> int:
        """How many, but for those of norms."""
        return sum(linear.weight.numel() for linear in self._linears)

    @property
    def kept_numbers(self) -> int:
        """How many of a token `forward` keeps, about."""
        return sum(len(linear.weight) for linear in (self.q, *self._linears))

    def forward(
        self, h: torch.Tensor, stream: Stream, lora: Lora, *, keep: bool
    ) -> tuple[torch.Tensor, Kept | None]:
        """(N, H) -> (N, H), and what `backward` asks for."""
        lows: Lows = {}
        x, h_inverse = self.norm1.forward(h)
        q, k, v = (
            suited(self._heads(linear.forward(x, lora, lows)))
            for linear in (self.q, self.k, self.v)
        )
        raw = None
        if self.head_norms is not None:
            raw = q, k
            q, k = self.normed(q, k)
        stream.rotary.turn_(q)
        stream.rotary.turn_(k)
        attention = attend((q, k, v), stream.spans, self.scale, keep=keep)
        mid = self.o.forward(attention.out.to(h.dtype), lora, lows, plus=h)
        x, mid_inverse = self.norm2.forward(mid)
        gate, up = self.gate.forward(x, lora, lows), self.up.forward(x, lora, lows)
        out = self.down.forward(self.activation.forward(gate).mul_(up), lora, lows, plus=mid)
        if not keep:
            return out, None
        return out, Kept(h, h_inverse, raw, attention, mid, mid_inverse, gate, up, lows)

    def backward(self, d: torch.Tensor, kept: Kept, stream: Stream, lora: Lora) -> torch.Tensor:
        """The gradient (N, H) of what went in, in the place of that of what came out; adds to those
        of the adapters."""
        d = self._mlp_backward(d, kept, lora)
        return self._attention_backward(d, kept, stream, lora)

    def _mlp_backward(self, d: torch.Tensor, kept: Kept, lora: Lora) -> torch.Tensor:
        active = self.activation.forward(kept.gate)
        d_product = self.down.backward(d, active * kept.up, lora, kept.lows)
        d_up = active.mul_(d_product)
        d_gate = self.activation.backward_(d_product.mul_(kept.up), kept.gate)
        x = self.norm2.again(kept.mid, kept.mid_inverse)
        dx = self.up.backward(d_up, x, lora, kept.lows)
        dx = self.gate.backward(d_gate, x, lora, kept.lows, plus=dx)
        return self.norm2.add_backward_(d, dx, kept.mid, kept.mid_inverse)

    def _attention_backward(
        self, d: torch.Tensor, kept: Kept, stream: Stream, lora: Lora
    ) -> torch.Tensor:
        attended = kept.attention.out.to(d.dtype)
        d_attended = self.o.backward(d, attended, lora, kept.lows)
        dq, dk, dv = kept.attention.backward(suited(d_attended))
        stream.rotary.turn_back_(dq)
        stream.rotary.turn_back_(dk)
        if kept.raw is not None:
            dq, dk = (
                n.add_backward_(torch.zeros_like(x), dy, x, n.forward(x)[1])
                for n, dy, x in zip(self._norms, (dq, dk), kept.raw, strict=True)
            )
        x = self.norm1.again(kept.h, kept.h_inverse)
        dq, dk, dv = (dy.flatten(1).to(x.dtype) for dy in (dq, dk, dv))
        dx = self.v.backward(dv, x, lora, kept.lows)
        dx = self.k.backward(dk, x, lora, kept.lows, plus=dx)
        dx = self.q.backward(dq, x, lora, kept.lows, plus=dx)
        return self.norm1.add_backward_(d, dx, kept.h, kept.h_inverse)

    def normed(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys, head by head, where they have norms."""
        q_norm, k_norm = self._norms
        return q_norm(q), k_norm(k)

    @property
    def _linears(self) -> tuple[Linear, ...]:
        return self.q, self.k, self.v, self.o, self.gate, self.up, self.down

    @property
    def _norms(self) -> tuple[RmsNorm, RmsNorm]:
        assert self.head_norms is not None
        return self.head_norms.q, self.head_norms.k

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(N, heads * D) -> (N, heads, D)"""
        return x.unflatten(1, (-1, self.head_size))
