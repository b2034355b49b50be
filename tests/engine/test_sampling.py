"""Sampling against a loop that computes every token anew, with transformers and PEFT alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire import tinker_pb2 as pb

from .reference import VOCAB, Client, samples
from .sampling import Asker, drain, floats, plain, plain_logprobs, prompt, tokens, trained

CONTEXT = 64  # of the tiny models
ARCHITECTURES = ("untied", "tied", "qwen2", "gemma2", "cohere", "gpt_neox")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_greedy_tokens_and_logprobs_are_those_of_the_plain_loop(
    kind: str, engine: Engine, models: Callable[[str], Path], tmp_path: Path
) -> None:
    base = models(kind)
    trained(engine, base, tmp_path / "adapter")
    for folder in (None, tmp_path / "adapter"):
        model = plain(base, folder)
        asker = Asker(engine, base, folder)
        # Longer than gemma2's window of 8.
        names = {
            asker.add(prompt(s, 4 + 5 * s), max_tokens=20, temperature=0, stop=[]): s
            for s in range(3)
        }
        for name, answer in drain(engine).items():
            (sequence,) = answer.sequences
            ids = prompt(names[name], 4 + 5 * names[name])
            sampled = tokens(sequence)
            assert len(sampled) == 20
            logprobs = plain_logprobs(model, ids + sampled)[len(ids) - 1 : -1]
            assert sampled == logprobs.argmax(dim=-1).tolist()
            expected = logprobs.gather(1, torch.tensor(sampled)[:, None])[:, 0].numpy()
            np.testing.assert_allclose(floats(sequence.logprobs), expected, atol=2e-5)


def test_sampled_logprobs_are_those_that_training_computes(
    engine: Engine, base: Path, tmp_path: Path
) -> None:
    client = trained(engine, base, tmp_path / "adapter")
    engine.handle(sampling.SnapshotSampler("snapshot", client.run))
    asker = Asker(engine, base, tmp_path / "adapter")
    ids = prompt(1)
    answer = asker.ask(ids, num_samples=3, max_tokens=12, seed=1, stop=[])
    for sequence in answer.sequences:
        full = ids + tokens(sequence)
        data = samples(0, [len(full) - 1])[0]
        data.tokens[:] = full[:-1]
        data.targets[:] = full[1:]
        scored = client.forward([data]).logprobs[0]
        np.testing.assert_allclose(floats(sequence.logprobs), scored[len(ids) - 1 :], atol=1e-5)
    asker.name = "snapshot"
    assert asker.ask(ids, num_samples=3, max_tokens=12, seed=1, stop=[]) == answer


def test_a_snapshot_stays_what_it_was(engine: Engine, base: Path, tmp_path: Path) -> None:
    client = trained(engine, base, tmp_path / "adapter")
    engine.handle(sampling.SnapshotSampler("snapshot", client.run))
    asker = Asker(engine, base)
    asker.name = "snapshot"
    before = asker.ask(prompt(0), max_tokens=8, temperature=0)
    client.backward(samples(9))
    client.step(learning_rate=0.1)
    assert asker.ask(prompt(0), max_tokens=8, temperature=0) == before
    engine.handle(sampling.SnapshotSampler("snapshot", client.run))
    assert asker.ask(prompt(0), max_tokens=8, temperature=0) != before


def test_training_is_untouched_by_sampling(engine: Engine, base: Path, tmp_path: Path) -> None:
    def losses(client: Client, between: Callable[[], object]) -> list[float]:
        made = []
        for step in range(3):
            made.append(client.backward(samples(step)).stats.loss_sum)
            between()
            client.step(learning_rate=0.05)
        return made

    alone = Client(engine, base, "alone")
    alone.create()
    expected = losses(alone, lambda: None)
    other = trained(engine, base, tmp_path / "adapter", rank=2)
    beside = Client(engine, base, "beside")
    beside.create()
    asker = Asker(engine, base, tmp_path / "adapter")

    def sample() -> None:
        asker.ask(prompt(3), num_samples=2, max_tokens=5)
        other.backward(samples(1))

    assert losses(beside, sample) == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_tempered_distribution(
    engine: Engine, base: Path, temperature: float
) -> None:
    ids, draws = prompt(4), 4000
    answer = Asker(engine, base).ask(
        ids, num_samples=draws, max_tokens=1, temperature=temperature, seed=5, stop=[]
    )
    counts = Counter(tokens(sequence)[0] for sequence in answer.sequences)
    logprobs = plain_logprobs(plain(base), ids, temperature)[-1]
    for token, probability in enumerate(logprobs.exp().tolist()):
        # Six standard deviations; a rare token's count is Poisson's.
        spread = 6 * (draws * probability * (1 - probability)) ** 0.5 + 6
        assert abs(counts[token] - draws * probability) < spread, token
    for sequence in answer.sequences[:50]:
        (token,) = tokens(sequence)
        assert floats(sequence.logprobs)[0] == pytest.approx(logprobs[token].item(), abs=2e-5)


def test_top_k_and_top_p_bound_what_is_drawn(engine: Engine, base: Path) -> None:
    ids = prompt(4)
    logprobs = plain_logprobs(plain(base), ids)[-1]
    order = logprobs.argsort(descending=True).tolist()

    def drawn(**fields: Any) -> set[int]:
        answer = Asker(engine, base).ask(
            ids, num_samples=1500, max_tokens=1, seed=1, stop=[], **fields
        )
        return {tokens(sequence)[0] for sequence in answer.sequences}

    assert drawn(top_k=3) == set(order[:3])
    assert drawn(top_k=1) == {order[0]}
    cumulated = logprobs.exp()[order].cumsum(0)
    nucleus = int((cumulated < 0.5).sum()) + 1
    inside = drawn(top_p=0.5)
    assert inside <= set(order[:nucleus])
    assert order[0] in inside
    assert len(inside) > nucleus // 2
    assert drawn(top_k=3, top_p=1e-6) == {order[0]}
    assert len(drawn()) > 20


def test_a_seed_gives_the_same_whatever_else_is_in_the_batch(
    engine: Engine, tiny_model_dir: Path, tmp_path: Path
) -> None:
    # A model whose sizes are whole vectors of the processor, as those of real ones are.
    trained(engine, tiny_model_dir, tmp_path / "adapter")
    asker = Asker(engine, tiny_model_dir, tmp_path / "adapter")
    fields = {"num_samples": 3, "max_tokens": 15, "seed": 11, "stop": [], "prompt_logprobs": True}
    alone = asker.ask(prompt(0), **fields)
    others = [asker.add(prompt(s, 3 + s), num_samples=4, max_tokens=5 + 3 * s) for s in range(1, 6)]
    name = asker.add(prompt(0), **fields)
    answers = drain(engine)
    assert set(answers) == {*others, name}
    assert answers[name] == alone, "to the last bit"
    distinct = {tuple(tokens(sequence)) for sequence in alone.sequences}
    assert len(distinct) == 3, "samples of one request differ"
    one = asker.ask(prompt(0), **{**fields, "num_samples": 1})
    assert one.sequences[0] == alone.sequences[0]
    again = asker.ask(prompt(0), **{**fields, "seed": 12})
    assert [tokens(s) for s in again.sequences] != [tokens(s) for s in alone.sequences]


def test_requests_join_while_others_are_being_generated(engine: Engine, base: Path) -> None:
    asker = Asker(engine, base)
    alone = {
        s: tokens(asker.ask(prompt(s), max_tokens=9, seed=s, stop=[]).sequences[0])
        for s in range(6)
    }
    names, answers = {}, {}
    for seed in range(6):
        names[asker.add(prompt(seed), max_tokens=9, seed=seed, stop=[])] = seed
        for _ in range(2):
            result, buffers = engine.handle(sampling.Decode(0.0))
            for name, body in zip(result["finished"], buffers, strict=True):
                answers[name] = pb.SampleResponse.FromString(body)
    answers |= drain(engine)
    assert {names[n]: tokens(a.sequences[0]) for n, a in answers.items()} == alone


def test_more_samples_than_places_and_a_small_memory(base: Path) -> None:
    engine = Engine(ops.EngineOptions())
    engine.handle(ops.Start(ops.EngineOptions(sampling_cache_mb=1)))
    asker = Asker(engine, base)
    asker.engine.sampling.cache_bytes = 40_000  # a few rows of 64 columns
    answer = asker.ask(prompt(0), num_samples=150, max_tokens=6, seed=3, stop=[])
    roomy = Asker(Engine(), base).ask(prompt(0), num_samples=150, max_tokens=6, seed=3, stop=[])
    assert [tokens(s) for s in answer.sequences] == [tokens(s) for s in roomy.sequences]


def test_little_memory_holds_the_weights_once(base: Path) -> None:
    said = []
    for low_memory in (False, True):
        engine = Engine()
        engine.handle(ops.Start(ops.EngineOptions(low_memory=low_memory)))
        asker = Asker(engine, base)
        answer = asker.ask(prompt(0), max_tokens=12, temperature=0, stop=[])
        said.append(tokens(answer.sequences[0]))
        (sampled,) = engine.sampling._bases.values()
        packed = [layer.base.packed is not None for layer in sampled.model._layers.values()]
        assert packed == [not low_memory] * len(packed)
    assert said[0] == said[1]


def test_prompt_scores(engine: Engine, base: Path) -> None:
    ids = prompt(6, 12)
    rows = plain_logprobs(plain(base), ids)
    asker = Asker(engine, base)
    answer = asker.ask(
        ids, max_tokens=1, prompt_logprobs=True, topk_prompt_logprobs=4, temperature=0.3
    )
    expected = rows[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    got = floats(answer.prompt_logprobs)
    assert np.isnan(got[0])
    np.testing.assert_allclose(got[1:], expected, atol=2e-5)
    best = answer.topk_prompt_logprobs
    assert (best.k, best.length) == (4, 12)
    values = floats(best.logprobs).reshape(12, 4)
    assert values[0].tolist() == [-99999.0] * 4
    np.testing.assert_allclose(values[1:], rows[:-1].topk(4).values, atol=2e-5)
    chosen = np.frombuffer(best.token_ids, "<i4").reshape(12, 4)[1:]
    assert chosen.tolist() == rows[:-1].topk(4).indices.tolist()

    last = asker.ask(ids, max_tokens=1, prompt_logprobs=True, prompt_logprobs_last_n=3)
    got = floats(last.prompt_logprobs)
    assert np.isnan(got[:-3]).all()
    np.testing.assert_allclose(got[-3:], expected[-3:], atol=2e-5)


def test_target_prompt_logprobs_dense_and_sparse(engine: Engine, base: Path) -> None:
    ids = prompt(7, 5)
    rows = plain_logprobs(plain(base), ids)
    asker = Asker(engine, base)
    dense = [[3, -1], [-1, 9], [200, 7], [0, 0]]
    target = {
        "data": [token for cells in dense for token in cells],
        "dtype": "int64",
        "shape": [4, 2],
    }
    answer = asker.ask(ids, max_tokens=1, target_prompt_logprobs=target)
    got = floats(answer.target_prompt_logprobs.dense).reshape(4, 2)
    assert list(answer.target_prompt_logprobs.shape) == [4, 2]
    for row, cells in enumerate(dense):
        for column, token in enumerate(cells):
            expected = 0.0 if token < 0 else rows[row, token].item()
            assert got[row, column] == pytest.approx(expected, abs=2e-5)
    sparse = {
        "data": [3, 200, 7],
        "dtype": "int64",
        "shape": [4, 2],
        "sparse_crow_indices": [0, 1, 1, 3, 3],
        "sparse_col_indices": [0, 0, 1],
    }
    csr = asker.ask(ids, max_tokens=1, target_prompt_logprobs=sparse).target_prompt_logprobs
    expected = [rows[0, 3].item(), rows[2, 200].item(), rows[2, 7].item()]
    np.testing.assert_allclose(floats(csr.sparse_csr.values), expected, atol=2e-5)
    assert np.frombuffer(csr.sparse_csr.crow_indices, "<i8").tolist() == [0, 1, 1, 3, 3]
    assert np.frombuffer(csr.sparse_csr.col_indices, "<i8").tolist() == [0, 0, 1]


def test_alternative_tokens_are_drawn_at_every_position(engine: Engine, base: Path) -> None:
    ids, k, temperature = prompt(8, 4), 3000, 1.5
    answer = Asker(engine, base).ask(
        ids, max_tokens=1, prompt_alt_tokens_k=k, temperature=temperature, seed=2
    )
    drawn = np.frombuffer(answer.prompt_alt_tokens.tokens.dense, "<i8").reshape(3, k).copy()
    scores = floats(answer.prompt_alt_tokens.logprobs.dense).reshape(3, k)
    rows = plain_logprobs(plain(base), ids, temperature)
    for position in range(3):
        np.testing.assert_allclose(scores[position], rows[position][drawn[position]], atol=2e-5)
        counts = np.bincount(drawn[position], minlength=VOCAB)
        expected = k * rows[position].exp().numpy()
        assert (np.abs(counts - expected) < 6 * np.sqrt(expected) + 6).all()


def test_top_k_of_sampled_tokens(engine: Engine, base: Path) -> None:
    ids = prompt(9)
    answer = Asker(engine, base).ask(ids, max_tokens=4, topk_sample_logprobs=5, seed=0, stop=[])
    (sequence,) = answer.sequences
    rows = plain_logprobs(plain(base), ids + tokens(sequence))[len(ids) - 1 : -1]
    best = sequence.topk_sampled_logprobs
    assert (best.k, best.length) == (5, 4)
    np.testing.assert_allclose(floats(best.logprobs).reshape(4, 5), rows.topk(5).values, atol=2e-5)


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


def test_streamed_tokens_are_the_answer_s(engine: Engine, base: Path) -> None:
    asker = Asker(engine, base)
    name = asker.add(prompt(0), num_samples=2, max_tokens=7, stop=[], stream=True)
    asker.add(prompt(1), max_tokens=3)
    streamed: list[list[int]] = [[], []]
    while True:
        result, buffers = engine.handle(sampling.Decode(0.0))
        decoded = sampling.decoded(result)
        assert set(decoded.streamed) <= {name}
        for so_far, new in zip(streamed, decoded.streamed.get(name, [[], []]), strict=True):
            so_far += new
        if name in decoded.finished:
            answer = pb.SampleResponse.FromString(buffers[decoded.finished.index(name)])
            break
    assert streamed == [tokens(sequence) for sequence in answer.sequences]
