"""Keys and values of the sequences that are being generated, in rows that come and go.

Row i of every layer belongs to the i-th sequence, whose token at position p lies in column p. A
sequence's keys so lie alike whichever others are beside it, and a row is freed by moving the last
one into its place. The two kinds of layer are what transformers' models write to and read from.
Knows nothing of sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

_COLUMNS = 64  # columns come in blocks of so many

Pair = tuple[torch.Tensor, torch.Tensor]


class KeyValueStore:
    """Keys and values of all layers, (rows, heads, columns, head size) each."""

    def __init__(self, num_layers: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.rows = 0
        self.columns = 0
        self.layers: list[Pair | None] = [None] * num_layers

    def reserve(self, rows: int, columns: int) -> None:
        """Have room for so many; what there is stays."""
        grown = max(self.rows, rows), max(self.columns, blocks(columns))
        if grown != (self.rows, self.columns):
            self.rows, self.columns = grown
            for number, pair in enumerate(self.layers):
                if pair is not None:
                    self.layers[number] = self._grow(pair[0]), self._grow(pair[1])

    def of_layer(self, number: int, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """A layer's room, made when its first keys and values show their shape."""
        pair = self.layers[number]
        if pair is None:
            pair = self._empty(keys), self._empty(values)
            self.layers[number] = pair
        return pair

    def move(self, source: int, target: int) -> None:
        """Put a row in the place of another."""
        if source != target:
            for pair in self.layers:
                for tensor in pair or ():
                    tensor[target] = tensor[source]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros: what lies behind a sequence is masked, but zero times NaN would be NaN.
        heads, size = like.shape[1], like.shape[3]
        if like.device.type == "cuda":  # whose kernel reads them token by token
            shape = self.rows, self.columns, heads, size
            return like.new_zeros(shape, dtype=self.dtype).transpose(1, 2)
        return like.new_zeros((self.rows, heads, self.columns, size), dtype=self.dtype)

    def _grow(self, old: torch.Tensor) -> torch.Tensor:
        new = self._empty(old)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


def blocks(columns: int) -> int:
    """The number of columns that are taken for so many."""
    return -(-columns // _COLUMNS) * _COLUMNS


@dataclass(frozen=True)
class Prefill:
    """Where the keys and values of a prefill go: prompt `sources[i]` to row `first + i`."""

    store: KeyValueStore
    first: int
    sources: torch.Tensor  # (rows,)

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """The prompts' (B, heads, T, D)."""
        last = self.first + len(self.sources)
        room = self.store.of_layer(layer, keys, values)
        for tensor, new in zip(room, (keys, values), strict=True):
            tensor[self.first : last, :, : new.shape[2]] = new[self.sources]


@dataclass(frozen=True)
class Step:
    """Rows 0 to B - 1 get one token each, at `positions`; they see `columns` columns."""

    store: KeyValueStore
    positions: torch.Tensor  # (B,)
    columns: int

    def put(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Pair:
        """The new tokens' (B, heads, 1, D); returns all of their rows, (B, heads, columns, D)."""
        room = self.store.of_layer(layer, keys, values)
        count = len(self.positions)
        at = self.positions[:, None, None, None].expand(keys.shape)
        for tensor, new in zip(room, (keys, values), strict=True):
            tensor[:count].scatter_(2, at, new.to(self.store.dtype))
        return room[0][:count], room[1][:count]

    @cached_property
    def spans(self) -> RowSpans:
        """For a kernel that reads every row as far as it goes."""
        return RowSpans(
            new=self._each(1),
            rows=self._each(self.store.columns),
            seen=(self.positions + 1).to(torch.int32),
        )

    def _each(self, step: int) -> torch.Tensor:
        count = len(self.positions)
        device = self.positions.device
        return torch.arange(0, (count + 1) * step, step, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class RowSpans:
    """Where the new tokens (B + 1,) and their rows (B + 1,) begin and end, and how much of each row
    is seen (B,); int32."""

    new: torch.Tensor
    rows: torch.Tensor
    seen: torch.Tensor


def cache(model: PreTrainedModel, access: Prefill | Step) -> Cache:
    """What the model's attention layers are to be given."""
    kind = _PrefillLayer if isinstance(access, Prefill) else _StepLayer
    number = model.config.get_text_config().num_hidden_layers
    return Cache(layers=[kind(access, layer) for layer in range(number)])


class _Layer(DynamicLayer):
    """A layer that transformers takes for its own; `update` is all that is asked of it."""

    def __init__(self, access: Any, number: int) -> None:
        super().__init__()
        self.access = access
        self.number = number

    def get_seq_length(self) -> int:
        return 0


class _PrefillLayer(_Layer):
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> Pair:
        access: Prefill = self.access
        access.put(self.number, key_states, value_states)
        return key_states, value_states


class _StepLayer(_Layer):
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> Pair:
        access: Step = self.access
        room = access.put(self.number, key_states, value_states)
        keys, values = (x[:, :, : access.columns].to(key_states.dtype) for x in room)
        return keys, values
