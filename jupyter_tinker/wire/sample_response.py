"""What sampling brings, as arrays, and its bytes as the SDK reads them (`SampleResponse`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import tinker_pb2 as pb
from .sample_request import Targets

# A cell of a top-k row that holds nothing, as the SDK knows it.
PAD_TOKEN, PAD_LOGPROB = 0, -99999.0


@dataclass(frozen=True)
class Topk:
    """The likeliest tokens of each position."""

    ids: np.ndarray  # (positions, k) int32
    logprobs: np.ndarray  # (positions, k) float32


@dataclass(frozen=True)
class Sampled:
    """One sampled sequence."""

    tokens: np.ndarray  # (T,) with the token it stopped at
    logprobs: np.ndarray  # (T,) float32
    stopped: bool  # by a stop token or string; else by its length
    topk: Topk | None = None


@dataclass(frozen=True)
class PromptScores:
    """What was asked about the prompt of N tokens; position 0 has no context and no score."""

    logprobs: np.ndarray | None = None  # (N,) float32, NaN where not scored
    topk: Topk | None = None  # (N, k), rows of padding where not scored
    targets: np.ndarray | None = None  # (C,) float32, 0 where nothing was asked
    alt_tokens: Topk | None = None  # (N - 1, k) draws


def encode(sequences: Sequence[Sampled], prompt: PromptScores, targets: Targets | None) -> bytes:
    """The bytes of a `SampleResponse`."""
    message = pb.SampleResponse(sequences=[_sequence(sequence) for sequence in sequences])
    if prompt.logprobs is not None:
        message.prompt_logprobs = _floats(prompt.logprobs)
    if prompt.topk is not None:
        message.topk_prompt_logprobs.CopyFrom(_topk(prompt.topk))
    if prompt.targets is not None and targets is not None:
        message.target_prompt_logprobs.CopyFrom(_like(targets, prompt.targets))
    if prompt.alt_tokens is not None:
        draws = prompt.alt_tokens
        message.prompt_alt_tokens.tokens.CopyFrom(_dense(draws.ids.astype("<i8"), pb.DTYPE_INT64))
        message.prompt_alt_tokens.logprobs.CopyFrom(
            _dense(draws.logprobs.astype("<f4"), pb.DTYPE_FLOAT32)
        )
    return message.SerializeToString()


def _sequence(sequence: Sampled) -> pb.SampledSequence:
    stop = pb.STOP_REASON_STOP if sequence.stopped else pb.STOP_REASON_LENGTH
    return pb.SampledSequence(
        stop_reason=stop,
        tokens=sequence.tokens.astype("<i4").tobytes(),
        logprobs=_floats(sequence.logprobs),
        topk_sampled_logprobs=None if sequence.topk is None else _topk(sequence.topk),
    )


def _topk(topk: Topk) -> pb.TopkLogprobs:
    length, k = topk.ids.shape
    return pb.TopkLogprobs(
        token_ids=topk.ids.astype("<i4").tobytes(),
        logprobs=_floats(topk.logprobs),
        k=k,
        length=length,
    )


def _like(targets: Targets, values: np.ndarray) -> pb.Tensor:
    """The values in the layout of what was asked for."""
    tensor = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=targets.shape)
    if targets.crow_indices is None or targets.col_indices is None:
        tensor.dense = _floats(values)
    else:
        tensor.sparse_csr.values = _floats(values)
        tensor.sparse_csr.crow_indices = targets.crow_indices.astype("<i8").tobytes()
        tensor.sparse_csr.col_indices = targets.col_indices.astype("<i8").tobytes()
    return tensor


def _dense(array: np.ndarray, dtype: pb.DType) -> pb.Tensor:
    return pb.Tensor(dense=array.tobytes(), dtype=dtype, shape=array.shape)


def _floats(array: np.ndarray) -> bytes:
    return array.astype("<f4").tobytes()
