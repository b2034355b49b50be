"""How a sample ends: at a stop, at its limit, given up, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire import tinker_pb2 as pb

from .reference import VOCAB
from .sampling import Asker, drain, prompt, tokens, trained

CONTEXT = 64  # of the tiny models


def test_stops(engine: Engine, base: Path) -> None:
    asker = Asker(engine, base)
    free = tokens(asker.ask(prompt(2), max_tokens=20, seed=4, stop=[]).sequences[0])
    assert len(free) == 20
    stop = free[7]
    (sequence,) = asker.ask(prompt(2), max_tokens=20, seed=4, stop=[stop]).sequences
    assert tokens(sequence) == free[: free.index(stop) + 1]
    assert sequence.stop_reason == pb.STOP_REASON_STOP
    (sequence,) = asker.ask(prompt(2), max_tokens=3, seed=4, stop=[]).sequences
    assert (tokens(sequence), sequence.stop_reason) == (free[:3], pb.STOP_REASON_LENGTH)
    # The end of text (2) stops by itself, and beside strings, but not beside an empty list.
    draws = asker.ask(prompt(2), num_samples=300, max_tokens=40, seed=4, temperature=3.0).sequences
    ended = [tokens(s) for s in draws if s.stop_reason == pb.STOP_REASON_STOP]
    assert ended
    assert all(made.index(2) == len(made) - 1 for made in ended)
    draws = asker.ask(prompt(2), num_samples=300, max_tokens=40, seed=4, temperature=3.0, stop=[])
    assert all(len(tokens(s)) == 40 for s in draws.sequences)


def test_stop_strings(engine: Engine, base: Path) -> None:
    words = {f"<{number}>": number for number in range(VOCAB)}
    Tokenizer(tokenizer_models.WordLevel(words, unk_token="<0>")).save(str(base / "tokenizer.json"))
    asker = Asker(engine, base)
    free = tokens(asker.ask(prompt(2), max_tokens=20, seed=4, stop=[]).sequences[0])
    text = f"{free[5]}> <{free[6]}"  # over the border of two tokens
    for stop in (text, ["never", text]):
        (sequence,) = asker.ask(prompt(2), max_tokens=20, seed=4, stop=stop).sequences
        assert tokens(sequence) == free[:7]
        assert sequence.stop_reason == pb.STOP_REASON_STOP


def test_without_max_tokens_the_context_is_the_limit(engine: Engine, base: Path) -> None:
    ids = prompt(3, 40)
    for fields in ({}, {"max_tokens": 10_000}):
        (sequence,) = Asker(engine, base).ask(ids, stop=[], **fields).sequences
        assert len(tokens(sequence)) == CONTEXT - 40
        assert sequence.stop_reason == pb.STOP_REASON_LENGTH


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 1_000_000}, "num_samples"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"stop": "x" * 10_000}, "stop string"),
        ({"stop": [""]}, "stop string"),
        ({"stop": ["a"] * 1000}, "stop"),
        ({"stop": [VOCAB]}, "vocabulary"),
        ({"stop": "text"}, "tokenizer.json"),
        ({"prompt_logprobs_last_n": 3}, "needs prompt_logprobs"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 10}, "between 1 and 9"),
        ({"topk_prompt_logprobs": VOCAB + 1}, "vocabulary"),
        ({"topk_sample_logprobs": VOCAB + 1}, "vocabulary"),
        ({"prompt_alt_tokens_k": 10**9}, "cells"),
        ({"record_stability_info": True}, "stable_reinforce"),
        ({"target_prompt_logprobs": {"data": [1], "shape": [1, 1]}}, r"\[9, K\]"),
        ({"target_prompt_logprobs": {"data": [1], "shape": [9, 1]}}, "agree"),
        ({"target_prompt_logprobs": {"data": [VOCAB] * 9, "shape": [9, 1]}}, "vocabulary"),
        (
            {
                "target_prompt_logprobs": {
                    "data": [1],
                    "shape": [9, 1],
                    "sparse_crow_indices": [0, 1],
                    "sparse_col_indices": [0],
                }
            },
            "CSR",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    engine: Engine, base: Path, fields: dict[str, Any], complaint: str
) -> None:
    (base / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(ops.OpError, match=complaint) as caught:
        Asker(engine, base).add(prompt(0), **fields)
    assert caught.value.category == "user"
    assert drain(engine) == {}


@pytest.mark.parametrize("bad", [[], [VOCAB], list(range(64))])
def test_prompts_that_do_not_fit_are_refused(engine: Engine, base: Path, bad: list[int]) -> None:
    with pytest.raises(ops.OpError):
        Asker(engine, base).add(bad)


def test_images_are_refused(engine: Engine, base: Path) -> None:
    asker = Asker(engine, base)
    chunks = [{"type": "image", "data": "", "format": "png"}]
    with pytest.raises(ops.OpError, match="'image'"):
        asker.add([1], prompt={"chunks": chunks})


def test_weights_that_have_diverged_fail_their_own_requests_only(
    engine: Engine, base: Path, tmp_path: Path
) -> None:
    client = trained(engine, base, tmp_path / "adapter")
    client.engine.runs[client.run].adapter.weights.fill_(float("nan"))
    engine.handle(sampling.SnapshotSampler("diverged", client.run))
    healthy, diverged = Asker(engine, base), Asker(engine, base)
    diverged.name = "diverged"
    diverged.requests = 100
    good = healthy.add(prompt(0), max_tokens=5)
    bad = diverged.add(prompt(0), max_tokens=5)
    finished, failed = [], []
    while not (finished and failed):
        decoded = sampling.decoded(engine.handle(sampling.Decode(0.0))[0])
        finished += decoded.finished
        failed += decoded.failed
    assert finished == [good]
    assert [(f.request, f.category) for f in failed] == [(bad, "user")]
    assert "diverged" in failed[0].error


def test_a_cancelled_request_frees_its_place(engine: Engine, base: Path) -> None:
    asker = Asker(engine, base)
    gone = asker.add(prompt(0), num_samples=3, max_tokens=30, stop=[])
    kept = asker.add(prompt(1), max_tokens=6, stop=[], seed=1)
    engine.handle(sampling.Decode(0.0))
    engine.handle(sampling.CancelSample(gone))
    engine.handle(sampling.CancelSample(gone))
    assert list(drain(engine)) == [kept]
    (lane,) = engine.sampling.lanes.values()
    assert not lane.rows


def test_an_unloaded_sampler_fails_what_it_had(engine: Engine, base: Path) -> None:
    asker = Asker(engine, base)
    name = asker.add(prompt(0), max_tokens=30)
    engine.handle(sampling.Decode(0.0))
    engine.handle(sampling.UnloadSampler(asker.name))
    engine.handle(sampling.UnloadSampler(asker.name))
    decoded = sampling.decoded(engine.handle(sampling.Decode(0.0))[0])
    assert [failure.request for failure in decoded.failed] == [name]
    with pytest.raises(ops.OpError, match="no sampler"):
        asker.add(prompt(0))
