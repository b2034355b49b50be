"""One more token of every sequence, or their prompts, through the layers of a model with Llama's
structure.

It computes what transformers' modules compute, in a third of the calls: of so few rows most of the
time goes into calling. A row's numbers do not depend on the others. Knows nothing of how a token is
chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import kv_cache
from ..joined import Joined
from .attention import Qkv, Spans, attend, of_rows, suited, takes_any_lengths
from .decoder import Decoder
from .layer import Layer

PRODUCT_ROWS = 256  # on a GPU


@dataclass(frozen=True)
class _Products:
    """A layer, and its products joined."""

    layer: Layer
    qkv: Joined
    o: Joined
    gate_up: Joined
    down: Joined


class Steps:
    """The layers between tokens and output layer."""

    def __init__(self, decoder: Decoder, joined: Callable[[str], Joined]) -> None:
        """`joined` gives the joined layers that the layer at a path is among."""
        self._decoder = decoder
        first = decoder.layers[0]
        weight = first.q.weight
        self._flash = takes_any_lengths(first.head_size, weight.device, weight.dtype)
        self._layers = [
            _Products(
                layer,
                qkv=joined(layer.q.path),
                o=joined(layer.o.path),
                gate_up=joined(layer.gate.path),
                down=joined(layer.down.path),
            )
            for layer in decoder.layers
        ]

    def serves(self, columns: int) -> bool:
        """Whether sequences of this length can be computed here."""
        return self._decoder.serves([columns])

    def forward(self, tokens: torch.Tensor, access: kv_cache.Step) -> torch.Tensor:
        """(B,) tokens -> (B, H) hidden states."""
        hidden = None if self._flash else _hidden(access)

        def attended(number: int, layer: Layer, qkv: Qkv) -> torch.Tensor:
            q, k, v = qkv
            keys, values = access.put(number, k[:, :, None], v[:, :, None])
            if hidden is None:
                return of_rows((q, keys, values), access, layer.scale).flatten(1)
            keys, values = keys[:, :, : access.columns], values[:, :, : access.columns]
            return attention(q, keys, values, hidden, layer.scale).flatten(1)

        return self._through(tokens, access.positions, attended)

    def read(self, tokens: torch.Tensor, spans: Spans) -> tuple[torch.Tensor, list[kv_cache.Pair]]:
        """(B, T) prompts, which are `spans` -> (B, T, H) hidden states, and every layer's keys and
        values, (B, key heads, T, D) each."""
        count, length = tokens.shape
        kept: list[kv_cache.Pair] = []

        def attended(number: int, layer: Layer, qkv: Qkv) -> torch.Tensor:
            keys, values = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv[1:])
            kept.append((keys, values))
            return attend(qkv, spans, layer.scale, keep=False).out

        hidden = self._through(tokens.flatten(), spans.positions, attended)
        return hidden.unflatten(0, (count, length)), kept

    def _through(
        self,
        tokens: torch.Tensor,  # (N,)
        positions: torch.Tensor,  # (N,)
        attended: Callable[[int, Layer, Qkv], torch.Tensor],  # -> (N, heads * D)
    ) -> torch.Tensor:
        """The layers, with any attention -> (N, H)."""
        count = len(tokens)
        rotary = self._decoder.angles(positions)
        h = filled(self._decoder.embed(tokens))
        for number, own in enumerate(self._layers):
            layer = own.layer
            x = layer.norm1(h)
            # (N, all heads, D)
            qkv = suited(own.qkv(x)[:count].unflatten(1, (-1, layer.head_size)))
            counts = [width // layer.head_size for width in own.qkv.widths]
            q, k, v = qkv.split(counts, 1)
            if layer.head_norms is None:
                rotary.turn_(qkv[:, : counts[0] + counts[1]])
            else:
                q, k = layer.normed(q, k)
                rotary.turn_(q)
                rotary.turn_(k)
            mid = own.o(filled(attended(number, layer, (q, k, v)).to(h.dtype)), h)
            x = layer.norm2(mid)
            gate, up = own.gate_up(x).split(own.gate_up.widths, 1)
            h = own.down(layer.activation.forward(gate).mul_(up), mid)
        return self._decoder.norm(h)[:count]


def _hidden(access: kv_cache.Step) -> torch.Tensor:
    """(B, 1, 1, columns), True where a row is not to look."""
    columns = torch.arange(access.columns, device=access.positions.device)
    return (columns > access.positions[:, None])[:, None, None]


def filled(x: torch.Tensor) -> torch.Tensor:
    """On a GPU, with zeros up to a number of rows that is always the same: there, which kernel
    multiplies depends on that number, and a row's last bits on the kernel."""
    if x.device.type != "cuda":
        return x
    return F.pad(x, (0, 0, 0, -len(x) % PRODUCT_ROWS))


def attention(
    q: torch.Tensor,  # (B, heads, D)
    keys: torch.Tensor,  # (B, key heads, columns, D)
    values: torch.Tensor,
    hidden: torch.Tensor,  # (B, 1, 1, columns), True where not to look
    scale: float,
) -> torch.Tensor:
    """Of one token a row -> (B, heads, D). Unlike a fused kernel on the CPU, which splits its sums
    by the threads it has, it does not let a row's result depend on the others."""
    grouped = q.unflatten(1, (keys.shape[1], -1)) * scale  # (B, key heads, group, D)
    scores = torch.matmul(grouped, keys.transpose(2, 3))  # (B, key heads, group, columns)
    scores = scores.masked_fill_(hidden, -torch.inf)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    return torch.matmul(shares, values).flatten(1, 2)
