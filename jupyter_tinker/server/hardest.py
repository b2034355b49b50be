"""The hardest sequences of a batch: those whose tokens the model found least likely.

Reads what a client sent and what it was answered, and nothing else. It imports numpy and works
through megabytes, so it is to be used off the event loop.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..wire.tensors import Arrays, Batch, Datum, decode_output, decode_request

# Cells that the sparse tensors of one request may take up here.
_CELLS = 1 << 22

# By which input a loss tells the tokens that it is about from the others. "dro" is about all.
_WEIGHTED_BY = {
    "cross_entropy": "weights",
    "importance_sampling": "advantages",
    "ppo": "advantages",
    "cispo": "advantages",
    "gspo": "advantages",
    "dro": None,
}
# What clients call it in losses of their own.
_USUAL_NAMES = ("weights", "mask", "advantages")


@dataclass(frozen=True)
class Scored:
    """One datum. Targets are (N,): of several at a position the heaviest, with the mean of their
    log-probabilities by the size of their weights, and the sum of these sizes."""

    number: int  # its place in the batch
    tokens: np.ndarray  # (N + 1,) the text as it reads: the first token, and then the targets
    logprobs: np.ndarray | None  # (N,) of the targets; None: the loss gives none
    weights: np.ndarray  # (N,)
    counts: np.ndarray  # (N,) bool: whose log-probability the loss is about
    losses: np.ndarray | None  # (N,) what each position added to the loss
    sampled: np.ndarray | None  # (N,) log-probabilities when the tokens were sampled
    weighted_by: str | None  # the input that `weights` are

    @property
    def loss_mean(self) -> float | None:
        """-logprob over the positions that count: for `weights` weighted by their size, else each
        alike. None where none counts, or the mean is not finite."""
        if self.logprobs is None or not self.counts.any():
            return None
        chosen = self.logprobs[self.counts].astype(np.float64)
        size = None
        if self.weighted_by == "weights":
            size = np.abs(self.weights[self.counts].astype(np.float64))
        mean = -float(np.average(chosen, weights=size))
        return mean if math.isfinite(mean) else None

    @property
    def hardness(self) -> tuple[float, int]:
        """Sorts by loss, and alike ones in the order of the batch."""
        mean = self.loss_mean
        return (-math.inf if mean is None else mean), -self.number


def sequences(payload: bytes, result: bytes, first: int) -> tuple[str, Iterator[Scored]]:
    """A request's loss and its sequences, numbered from `first`. Raises `OpError`."""
    batch = decode_request(payload, cells=_CELLS)
    outputs = decode_output(result)
    return batch.loss_fn, _sequences(batch, outputs, first)


def _sequences(batch: Batch, outputs: list[Arrays], first: int) -> Iterator[Scored]:
    for number, datum in enumerate(batch.data):
        output = outputs[number] if number < len(outputs) else {}
        yield _sequence(first + number, batch.loss_fn, datum, output)


def _sequence(number: int, loss: str, datum: Datum, output: Arrays) -> Scored:
    inputs = datum.loss_fn_inputs
    targets = inputs.get("target_tokens", datum.tokens[1:])
    shape = targets.shape
    weighted_by, weights = _weights(loss, inputs, shape)
    logprobs, sampled = _like(output.get("logprobs"), shape), _like(inputs.get("logprobs"), shape)
    if targets.ndim == 2:
        sizes = np.abs(weights)
        heaviest, total = sizes.argmax(1), sizes.sum(1)
        rows = np.arange(len(targets))
        if logprobs is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                mixed = (sizes * logprobs).sum(1) / total
            logprobs = np.where(total != 0, mixed, logprobs[rows, heaviest]).astype(np.float32)
        sampled = None if sampled is None else sampled[rows, heaviest]
        targets, weights = targets[rows, heaviest], total
    counts = np.ones(len(targets), bool) if weighted_by is None else weights != 0
    # Where a target does not count, clients may have put anything; the text is what was read.
    read = np.append(datum.tokens[1:], targets[-1:])[: len(targets)]
    if len(read) == len(targets):
        astray = ~counts & (read != targets)
        targets = np.where(astray, read, targets)
        if logprobs is not None:
            logprobs = np.where(astray, np.nan, logprobs)
    return Scored(
        number=number,
        tokens=np.concatenate([datum.tokens[:1], targets]),
        logprobs=logprobs,
        weights=weights,
        counts=counts,
        losses=_like(output.get("elementwise_loss"), targets.shape),
        sampled=sampled,
        weighted_by=weighted_by,
    )


def _weights(loss: str, inputs: Arrays, shape: tuple[int, ...]) -> tuple[str | None, np.ndarray]:
    """The input that tells which tokens count, and its values; ones where all do."""
    usual = next((name for name in _USUAL_NAMES if name in inputs), None)
    name = _WEIGHTED_BY.get(loss, usual)
    found = _like(inputs.get(name or ""), shape)
    return (name, found) if found is not None else (None, np.ones(shape, np.float32))


def _like(array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    return array if array is not None and array.shape == shape else None


def hardest(every: Iterable[Scored], count: int) -> list[Scored]:
    """The `count` hardest, hardest first; those in which nothing counts come last."""
    return heapq.nlargest(count, every, key=lambda one: one.hardness)


@dataclass(frozen=True)
class Part:
    """As much of a sequence as is shown: its tokens from `start` on."""

    whole: Scored
    start: int
    tokens: list[int]
    own: slice  # of the positions whose targets these tokens are

    def json(self, text: Sequence[str] | None, marks: frozenset[int]) -> dict[str, Any]:
        """Columns of one value for each token; the first of a whole sequence is no target, so that
        nothing is known of it but itself."""
        whole = self.whole
        lead = [None] if self.start == 0 else []

        def column(values: np.ndarray | None) -> list[float | None] | None:
            return None if values is None else [*lead, *map(_number, values[self.own])]

        return {
            "number": whole.number,
            "loss_mean": whole.loss_mean,
            "counted": int(whole.counts.sum()),
            "length": len(whole.tokens),
            "start": self.start,
            "weighted_by": whole.weighted_by,
            "tokens": self.tokens,
            "text": None if text is None else list(text),
            "special": [place for place, token in enumerate(self.tokens) if token in marks],
            "logprobs": column(whole.logprobs),
            "weights": column(np.where(whole.counts, whole.weights, 0)),
            "losses": column(whole.losses),
            "sampled_logprobs": column(whole.sampled),
        }


def part(whole: Scored, most: int) -> Part:
    """The `most` tokens in a row on which a sequence's loss is highest."""
    count = len(whole.tokens)
    start = 0
    if count > most and whole.logprobs is not None:
        loss = np.where(whole.counts, -whole.logprobs.astype(np.float64), 0)
        # The first token has no loss, and the sum before it is 0.
        sums = np.concatenate([[0, 0], np.nan_to_num(loss).cumsum()])
        start = int(np.argmax(sums[most:] - sums[:-most]))
    tokens = whole.tokens[start : start + most].tolist()
    first = max(start - 1, 0)
    last = start + len(tokens) - 1
    return Part(whole, start, tokens, slice(first, last))


def _number(value: np.floating[Any]) -> float | None:
    """JSON's: with the digits that tell a float32 from its neighbours."""
    return float(str(value)) if np.isfinite(value) else None
