"""Sampling against a loop that computes every token anew, with transformers and PEFT alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire import tinker_pb2 as pb

from .reference import Client, samples
from .sampling import Asker, drain, floats, plain, plain_logprobs, prompt, tokens, trained

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
        packed = [joined.linear.packed for joined in sampled.model._joined]
        assert packed == [not low_memory] * len(packed)
    assert said[0] == said[1]


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
