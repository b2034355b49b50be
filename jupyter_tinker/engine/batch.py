"""Datums to tensors: checks them against the model and packs them with as little padding as can be.

A datum's sequence is padded on the right and no attention mask is made: causal attention never lets
a real position see the padding behind it. Knows nothing of how losses and gradients are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..wire.ops import OpError
from ..wire.tensors import Datum
from .losses import Input, Loss

# Of two halves that are computed at once the one waits for the other, and more than this share of
# both is more than it wins.
_UNEVEN = 0.1


@dataclass(frozen=True)
class Limits:
    """What a model takes."""

    vocab_size: int
    context_length: int


@dataclass(frozen=True)
class Example:
    """A checked datum. Targets are (N, K); K is 1 for flat targets."""

    tokens: np.ndarray  # (N,) int64
    targets: np.ndarray  # (N, K) int64
    inputs: dict[str, np.ndarray]  # each (N, K) float32, or as the loss declares it
    flat: bool  # the caller's target_tokens had one dimension

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Microbatch:
    """Examples that go through the model together, as tensors on its device."""

    members: list[int]  # their indices in the batch
    tokens: torch.Tensor  # (B, T)
    rows: torch.Tensor  # (R,) the real positions in the flattened (B * T)
    targets: torch.Tensor  # (R, K) K of the widest member, filled up with token 0
    spans: list[slice]  # each member's rows among the R


def check(data: Sequence[Datum], loss: Loss, limits: Limits) -> list[Example]:
    """The examples in `data`, or an `OpError` that names the datum and the key at fault."""
    if not data:
        raise OpError("the batch holds no data; send at least one datum")
    return [_example(f"datum {i}", datum, loss, limits) for i, datum in enumerate(data)]


def _example(where: str, datum: Datum, loss: Loss, limits: Limits) -> Example:
    tokens = _tokens(where, datum.tokens, limits)
    targets = _targets(where, datum, loss, limits)
    for key in loss.config:
        if key in datum.loss_fn_inputs:
            raise OpError(
                f"{where}: loss_fn_inputs[{key!r}]: {loss.name} takes {key} from loss_fn_config, "
                f"one number for all tokens"
            )
    inputs = {
        name: _loss_input(f"{where}: ", name, wanted, datum, loss, targets.shape)
        for name, wanted in loss.inputs.items()
    }
    if (fault := loss.fault(inputs)) is not None:
        raise OpError(f"{where}: loss_fn_inputs{fault}")
    return Example(tokens, targets.reshape(len(tokens), -1), inputs, flat=targets.ndim == 1)


def _tokens(where: str, tokens: np.ndarray, limits: Limits) -> np.ndarray:
    if len(tokens) == 0:
        raise OpError(f"{where}: model_input is empty; send at least one token")
    if len(tokens) > limits.context_length:
        raise OpError(
            f"{where}: model_input has {len(tokens)} tokens and the model's context holds "
            f"{limits.context_length}; shorten it"
        )
    check_ids(f"{where}: model_input", tokens, limits)
    return tokens.astype(np.int64)


def _targets(where: str, datum: Datum, loss: Loss, limits: Limits) -> np.ndarray:
    targets = datum.loss_fn_inputs.get("target_tokens")
    if targets is None:
        raise OpError(f"{where}: {loss.name} needs loss_fn_inputs['target_tokens']; add it")
    name = f"{where}: loss_fn_inputs['target_tokens']"
    if not np.issubdtype(targets.dtype, np.integer):
        raise OpError(f"{name} is {targets.dtype.name}; send int64")
    if targets.ndim not in loss.target_ranks:
        several = "one target a token" if targets.ndim == 2 else "several targets a token"
        raise OpError(f"{name} has {_dimensions(targets.ndim)}; {loss.name} takes {several}")
    if len(targets) != len(datum.tokens) or targets.size == 0:
        raise OpError(
            f"{name} has shape {list(targets.shape)} and model_input {len(datum.tokens)} tokens; "
            f"send one row of targets for each token"
        )
    check_ids(name, targets, limits)
    return targets.astype(np.int64)


def _loss_input(
    where: str, key: str, wanted: Input, datum: Datum, loss: Loss, shape: tuple[int, ...]
) -> np.ndarray:
    array = datum.loss_fn_inputs.get(key)
    name = f"{where}loss_fn_inputs[{key!r}]"
    if array is None and wanted.fill is None:
        raise OpError(f"{where}{loss.name} needs loss_fn_inputs[{key!r}]; add it")
    if array is None:
        array = np.full(shape, wanted.fill, np.float32)
    if wanted.rank is not None:
        return _of_rank(name, array, wanted.rank, loss)
    if array.shape != shape:
        raise OpError(
            f"{name} has shape {list(array.shape)} and target_tokens {list(shape)}; make them agree"
        )
    if not np.isfinite(array).all():
        raise OpError(f"{name} holds NaN or infinity; send finite numbers")
    return array.astype(np.float32).reshape(shape[0], -1)


def _of_rank(name: str, array: np.ndarray, rank: int, loss: Loss) -> np.ndarray:
    # On the wire a scalar is a tensor of one value without a shape.
    if rank == 0 and array.size == 1 and array.ndim < 2:
        array = array.reshape(())
    if array.ndim != rank:
        raise OpError(
            f"{name} has {_dimensions(array.ndim)}; {loss.name} declares it with rank {rank}"
        )
    return array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32)


def _dimensions(count: int) -> str:
    return "one dimension" if count == 1 else "two dimensions"


def check_ids(where: str, ids: np.ndarray, limits: Limits) -> None:
    """Raises `OpError` for token ids that the model does not have."""
    outside = ids[(ids < 0) | (ids >= limits.vocab_size)]
    if outside.size:
        raise OpError(
            f"{where} holds token id {outside[0]}, and the model's vocabulary goes from 0 to "
            f"{limits.vocab_size - 1}; use the tokenizer of this base model"
        )


def group(lengths: Sequence[int], max_tokens: int, group_cost: int) -> list[list[int]]:
    """Indices of `lengths` in groups of like length, at the least cost in padding and groups.

    A group costs its longest length times its size, plus `group_cost` tokens for being a pass of
    its own. Sorted by length the best groups are neighbours, so the best cuts follow from the best
    cuts of every shorter prefix. No group has more than `max_tokens`, save one long sequence alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    best = np.zeros(len(order) + 1)  # least cost of the first n
    cut = np.zeros(len(order) + 1, np.int64)  # where the last group of those starts
    for n in range(1, len(order) + 1):
        longest = lengths[order[n - 1]]
        first = max(0, n - max(1, max_tokens // longest))
        costs = best[first:n] + longest * np.arange(n - first, 0, -1) + group_cost
        cut[n] = first + int(np.argmin(costs))
        best[n] = costs[cut[n] - first]
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[cut[end] : end])
        end = int(cut[end])
    return groups


def fill(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of `lengths` in groups of about as many tokens, where nothing is padded.

    Like lengths are neighbours. No group has more than `max_tokens`, save one long sequence alone.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    passes = -(-sum(lengths) // max_tokens)
    aim = -(-sum(lengths) // max(1, passes))
    groups: list[list[int]] = []
    room = 0
    for i in order:
        if not groups or lengths[i] > room:
            groups.append([])
            room = max_tokens
        groups[-1].append(i)
        room -= lengths[i]
        if max_tokens - room >= aim:
            room = 0
    return groups


def halve(
    lengths: Sequence[int], longest: int, least: int
) -> tuple[list[int], list[int], list[int]]:
    """Indices of `lengths` in two halves of nearly as many tokens, and those left over.

    No sequence of a half is longer than `longest`, and no half has fewer than `least` tokens; where
    that cannot be had, all are left over.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for skipped in range(sum(length > longest for length in lengths), len(order)):
        halves: tuple[list[int], list[int]] = [], []
        sums = [0, 0]
        for i in order[skipped:]:
            fewer = int(sums[1] < sums[0])
            halves[fewer].append(i)
            sums[fewer] += lengths[i]
        if min(sums) < least:
            break
        if abs(sums[0] - sums[1]) <= _UNEVEN * sum(sums):
            return *halves, order[:skipped]
    return [], [], order


def assemble(examples: Sequence[Example], members: list[int], device: torch.device) -> Microbatch:
    """The members' tensors, padded to the longest of them."""
    chosen = [examples[i] for i in members]
    longest = max(example.length for example in chosen)
    width = max(example.targets.shape[1] for example in chosen)
    ends = np.cumsum([example.length for example in chosen])
    tokens = np.zeros((len(chosen), longest), np.int64)
    targets = np.zeros((ends[-1], width), np.int64)
    spans = [slice(int(end) - e.length, int(end)) for e, end in zip(chosen, ends, strict=True)]
    for row, (example, span) in enumerate(zip(chosen, spans, strict=True)):
        tokens[row, : example.length] = example.tokens
        targets[span, : example.targets.shape[1]] = example.targets
    rows = [row * longest + np.arange(example.length) for row, example in enumerate(chosen)]
    return Microbatch(
        members=members,
        tokens=torch.from_numpy(tokens).to(device),
        rows=torch.from_numpy(np.concatenate(rows)).to(device),
        targets=torch.from_numpy(targets).to(device),
        spans=spans,
    )
