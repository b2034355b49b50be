"""What we write of samples is what the SDK reads, and what the SDK writes of requests is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tinker.proto.response_conv import deserialize_sample_response

from jupyter_tinker.wire import sample_request, sample_response
from jupyter_tinker.wire.sample_response import PromptScores, Sampled, Topk
from jupyter_tinker.wire.tinker import BadRequest

_FLOATS = st.floats(-1e3, 0, width=32)


@st.composite
def topks(draw: st.DrawFn, length: int) -> Topk:
    shape = (length, draw(st.integers(1, 4)))
    ids = draw(arrays.arrays(np.int32, shape, elements=st.integers(0, 2**31 - 1)))
    return Topk(ids, draw(arrays.arrays(np.float32, shape, elements=_FLOATS)))


@st.composite
def sequences(draw: st.DrawFn) -> Sampled:
    length = draw(st.integers(1, 6))
    return Sampled(
        tokens=draw(arrays.arrays(np.int32, length, elements=st.integers(0, 2**31 - 1))),
        logprobs=draw(arrays.arrays(np.float32, length, elements=_FLOATS)),
        stopped=draw(st.booleans()),
        topk=draw(st.none() | topks(length)),
    )


@given(
    made=st.lists(sequences(), min_size=1, max_size=4),
    logprobs=st.none() | arrays.arrays(np.float32, st.integers(1, 6), elements=_FLOATS),
    topk=st.none() | topks(3),
    alt=st.none() | topks(2),
)
@settings(deadline=None)
def test_the_sdk_reads_what_was_written(
    made: list[Sampled], logprobs: np.ndarray | None, topk: Topk | None, alt: Topk | None
) -> None:
    body = sample_response.encode(made, PromptScores(logprobs, topk, None, alt), None)
    read = deserialize_sample_response(body)
    assert len(read.sequences) == len(made)
    for ours, theirs in zip(made, read.sequences, strict=True):
        np.testing.assert_array_equal(theirs.tokens_np, ours.tokens)
        np.testing.assert_array_equal(theirs.logprobs_np, ours.logprobs)
        assert theirs.stop_reason == ("stop" if ours.stopped else "length")
        assert (theirs.topk_logprobs_np is None) == (ours.topk is None)
        if ours.topk is not None:
            np.testing.assert_array_equal(theirs.topk_logprobs_np.token_ids, ours.topk.ids)
            np.testing.assert_array_equal(theirs.topk_logprobs_np.logprobs, ours.topk.logprobs)
    assert (read.prompt_logprobs_np is None) == (logprobs is None)
    if logprobs is not None:
        np.testing.assert_array_equal(read.prompt_logprobs_np, logprobs)
    assert (read.topk_prompt_logprobs_np is None) == (topk is None)
    if alt is not None:
        np.testing.assert_array_equal(read.prompt_alt_tokens.tokens.to_numpy(), alt.ids)
        np.testing.assert_array_equal(read.prompt_alt_tokens.logprobs.to_numpy(), alt.logprobs)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        sample_request.read(body)


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=4),
    st.none() | st.integers(-(2**63), 2**64 - 1),
)
def test_chunks_are_one_prompt(chunks: list[list[int]], seed: int | None) -> None:
    body = {
        "sampling_session_id": "s",
        "seq_id": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens} for tokens in chunks]},
        "sampling_params": {"seed": seed},
    }
    tokens = [token for chunk in chunks for token in chunk]
    if not tokens:
        with pytest.raises(BadRequest, match="empty"):
            sample_request.read(json.dumps(body).encode())
    else:
        read = sample_request.read(json.dumps(body).encode())
        assert read.prompt.tolist() == tokens
        assert read.seed == seed
