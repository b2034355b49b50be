"""Steps and prompts of sampling on a GPU, recorded. Knows nothing of requests."""

from __future__ import annotations

import weakref

import torch

from .. import kv_cache
from .attention import Spans
from .recording import Repeated, Room
from .step import PRODUCT_ROWS, Steps

PROMPT_TOKENS = 1024  # are always read at once, however few or many prompts they are of
_SHORTEST = 16  # tokens


class RecordedStep:
    """Over one store and with one adapter, for all rows that there is room for. Done as it is the
    first time, and recorded the second."""

    def __init__(self, steps: Steps, store: kv_cache.KeyValueStore, device: torch.device) -> None:
        self._steps = steps
        self._store = weakref.ref(store)  # which is to be freed with its last row
        self.size = store.rows, store.columns
        self._tokens = torch.zeros(store.rows, dtype=torch.long, device=device)
        self._positions = torch.zeros_like(self._tokens)
        self._repeated: Repeated[torch.Tensor] = Repeated(device, Room())

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(B,) tokens of the first rows -> (B, H)"""
        for own, new in ((self._tokens, tokens), (self._positions, positions)):
            own[: len(new)] = new
            own[len(new) :] = 0
        return self._repeated(self._compute)[: len(tokens)].clone()

    def _compute(self) -> torch.Tensor:
        store = self._store()
        assert store is not None
        access = kv_cache.Step(store, self._positions, store.columns)
        return self._steps.forward(self._tokens, access)


class RecordedPrompts:
    """Prompts of one length, read with one adapter."""

    def __init__(self, steps: Steps, length: int, device: torch.device, room: Room) -> None:
        self._steps = steps
        count = max(1, PROMPT_TOKENS // length)
        self._tokens = torch.zeros(count, length, dtype=torch.long, device=device)
        self._spans = Spans.of([length] * count, device)
        self._repeated: Repeated[tuple[torch.Tensor, list[kv_cache.Pair]]] = Repeated(device, room)

    def read(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[kv_cache.Pair]]:
        """What `Steps.read` gives, good until the next prompts are read."""
        count = len(tokens)
        self._tokens[:count] = tokens
        self._tokens[count:] = 0
        hidden, kept = self._repeated(self._compute)
        return hidden[:count], [(keys[:count], values[:count]) for keys, values in kept]

    def _compute(self) -> tuple[torch.Tensor, list[kv_cache.Pair]]:
        return self._steps.read(self._tokens, self._spans)


def prompt_length(length: int) -> int:
    """What a prompt is filled up to."""
    if length > PROMPT_TOKENS:
        return -(-length // PRODUCT_ROWS) * PRODUCT_ROWS
    return max(_SHORTEST, 1 << (length - 1).bit_length())
