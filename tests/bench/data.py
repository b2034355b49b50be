"""The batches that are timed: English text, half of each sequence with weight zero."""

from __future__ import annotations

import pydoc_data.topics
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from tests.bench import device

_MIXED_LENGTHS = [32, 64, 96, 128, 160, 192, 224, 256]


@dataclass(frozen=True)
class Sequence:
    """Tokens, the targets one further on, and weights: 0 for the first half, 1 for the second."""

    tokens: list[int]
    targets: list[int]
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def batches(model: Path) -> dict[str, list[Sequence]]:
    """`4x128` and `8x32..256`, tokenised for a model; and `16x1024` for a GPU."""
    ids = tokens(model)
    lengths = random.Random(0).sample(_MIXED_LENGTHS, len(_MIXED_LENGTHS))
    return {
        **({"16x1024": batch(model, 16, 1024)} if device.CUDA else {}),
        "4x128": [_sequence(ids, 200 * i, 128) for i in range(4)],
        "8x32..256": [_sequence(ids, 1000 + 300 * i, n) for i, n in enumerate(lengths)],
    }


def batch(model: Path, count: int, length: int) -> list[Sequence]:
    """So many sequences of one length, tokenised for a model."""
    ids = tokens(model)
    return [_sequence(ids, 40 * i, length) for i in range(count)]


def tokens(model: Path) -> list[int]:
    """English text in a model's tokens."""
    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics)[:12])
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    return tokenizer.encode(text, add_special_tokens=False).ids


def _sequence(ids: list[int], start: int, length: int) -> Sequence:
    piece = ids[start : start + length + 1]
    weights = np.zeros(length, np.float32)
    weights[length // 2 :] = 1.0
    return Sequence(piece[:-1], piece[1:], weights)
