"""One more token of every sequence, through the layers of a model with Llama's structure.

It computes what transformers' modules compute, in a third of the calls: of so few rows most of the
time goes into calling. A row's numbers do not depend on the others. Knows nothing of how a token is
chosen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import kv_cache
from ..joined import Joined
from .attention import of_rows, takes_any_lengths
from .decoder import Decoder
from .layer import Layer
from .recording import Recording, Room, recorded

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

    def serves(self, access: kv_cache.Step) -> bool:
        """Whether sequences of this length can be computed here."""
        return self._decoder.serves([access.columns])

    def forward(self, tokens: torch.Tensor, access: kv_cache.Step) -> torch.Tensor:
        """(B,) tokens -> (B, H) hidden states."""
        count = len(access.positions)
        columns = torch.arange(access.columns, device=tokens.device)
        hidden = (columns > access.positions[:, None])[:, None, None]  # (B, 1, 1, columns)
        rotary = self._decoder.angles(access.positions)
        h = filled(self._decoder.embed(tokens))
        for number, own in enumerate(self._layers):
            layer = own.layer
            x = layer.norm1(h)
            qkv = own.qkv(x)[:count].unflatten(1, (-1, layer.head_size))  # (B, all heads, D)
            counts = [width // layer.head_size for width in own.qkv.widths]
            q, k, v = qkv.split(counts, 1)
            if layer.head_norms is None:
                rotary.turn_(qkv[:, : counts[0] + counts[1]])
            else:
                q, k = layer.normed(q, k)
                rotary.turn_(q)
                rotary.turn_(k)
            keys, values = access.put(number, k[:, :, None], v[:, :, None])
            if takes_any_lengths(layer.head_size, q.device, q.dtype):
                attended = of_rows((q, keys, values), access, layer.scale)
            else:
                keys, values = keys[:, :, : access.columns], values[:, :, : access.columns]
                attended = attention(q, keys, values, hidden, layer.scale)
            mid = own.o(filled(attended.flatten(1)), h)
            x = layer.norm2(mid)
            gate, up = own.gate_up(x).split(own.gate_up.widths, 1)
            h = own.down(layer.activation.forward(gate).mul_(up), mid)
        return self._decoder.norm(h)[:count]


class RecordedStep:
    """Over one store and with one adapter, for all rows that there is room for. Done as it is the
    first time, and recorded the second."""

    def __init__(self, steps: Steps, store: kv_cache.KeyValueStore, device: torch.device) -> None:
        self._steps, self._device = steps, device
        self._store = weakref.ref(store)  # which is to be freed with its last row
        self.size = store.rows, store.columns
        self._tokens = torch.zeros(store.rows, dtype=torch.long, device=device)
        self._positions = torch.zeros_like(self._tokens)
        self._room = Room()
        self._uses = 0
        self._recording: Recording[torch.Tensor] | None = None

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B,) tokens of the first rows -> (B, H)"""
        for own, new in ((self._tokens, tokens), (self._positions, positions)):
            own[: len(new)] = new
            own[len(new) :] = 0
        if self._uses == 1:
            self._recording = recorded(self._compute, self._device, self._room)
        hidden = self._compute() if self._recording is None else self._recording.again()
        self._uses += 1
        return hidden[: len(tokens)].clone()

    def _compute(self) -> torch.Tensor:
        store = self._store()
        assert store is not None
        access = kv_cache.Step(store, self._positions, store.columns)
        return self._steps.forward(self._tokens, access)


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
