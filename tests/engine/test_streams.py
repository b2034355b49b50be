"""Two streams of microbatches at once, each with half of the threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_tinker.engine import beside, losses, passes, train
from jupyter_tinker.engine.adapter import Adapter
from jupyter_tinker.engine.batch import halve
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire.ops import AdamParams, EngineOptions, LoraSpec, OpError

from .reference import Client, samples
from .test_fast import Case, assert_same, batch, cases, computed, made_base, made_model, made_run
from .test_memory import CUDA, LENGTHS, SmallDevice

EVEN = (9, 8, 5, 4, 20, 21)


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(passes, "_LEAST_STREAM_TOKENS", 1)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(0, 60), st.integers(1, 90)
)
def test_halves_are_even_and_hold_every_sequence_once(
    lengths: list[int], longest: int, least: int
) -> None:
    left, right, rest = halve(lengths, longest, least)
    assert sorted([*left, *right, *rest]) == list(range(len(lengths)))
    if left or right:
        sums = [sum(lengths[i] for i in half) for half in (left, right)]
        assert min(sums) >= least
        assert abs(sums[0] - sums[1]) <= 0.1 * sum(sums)
        assert all(lengths[i] <= longest for i in [*left, *right])


@pytest.mark.parametrize(
    ("lengths", "halves"),
    [
        ([9, 9, 9, 9], (2, 2, 0)),
        ([9, 9, 9, 9, 9], (2, 2, 1)),
        ([40, 9, 9], (1, 1, 1)),
        ([40, 9], (0, 0, 2)),
        ([90, 80, 70, 60, 50, 40, 30, 20], (4, 4, 0)),
    ],
    ids=str,
)
def test_what_does_not_come_out_even_is_left_over(
    lengths: list[int], halves: tuple[int, int, int]
) -> None:
    assert tuple(map(len, halve(lengths, 100, 1))) == halves


@settings(max_examples=40, deadline=None)
@given(cases())
def test_they_compute_what_the_reference_computes(case: Case) -> None:
    base = made_base(made_model(case.family, case.seed, **case.config))
    run = made_run(base, case.spec, case.seed)
    assert_same(run, batch(case.lengths, case.loss, case.seed), case.microbatch_tokens)


def test_gradients_add_up_over_calls() -> None:
    run = made_run(made_base(made_model("Llama")), LoraSpec(rank=2, seed=0))
    requests = [batch(EVEN, "cross_entropy", seed) for seed in (0, 1)]
    gradients = [computed(run, request, 1000)[1] for request in requests]
    loss = losses.LOSSES["cross_entropy"]
    run.zero_grad()
    for request in requests:
        train.forward_backward(run, loss, request, 1000)
    torch.testing.assert_close(run.adapter.gradients, sum(gradients))


def test_a_pass_forward_has_no_gradients(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(Engine(), base)
    client.create()
    trained = client.backward(samples(0, EVEN))
    monkeypatch.delattr(Adapter, "laid_out")
    before = client.gradients.clone()
    forward = client.forward(samples(0, EVEN))
    assert forward.metrics == trained.metrics
    assert torch.equal(client.gradients, before)


def test_training_is_the_same_each_time(base: Path) -> None:
    def trained() -> torch.Tensor:
        client = Client(Engine(), base)
        client.create()
        for seed in range(3):
            client.backward(samples(seed, EVEN))
            client.step(AdamParams(learning_rate=1e-2))
        return client.weights

    assert torch.equal(trained(), trained())


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("at", range(len(EVEN)))
def test_a_fault_in_either_leaves_the_gradient_as_it_was(
    base: Path, accumulated: bool, at: int
) -> None:
    client = Client(Engine(), base)
    client.create()
    if accumulated:
        client.backward(samples(1))
    before = client.gradients.clone()
    data = samples(0, EVEN)
    weights = np.full(EVEN[at], 3e38, np.float32)
    data[at] = replace(data[at], weights=weights)
    answer = client.backward(data)
    assert answer.stats.not_finite is not None
    assert f"datum {at}:" in answer.stats.not_finite
    assert torch.equal(client.gradients, before)
    assert [len(lp) for lp in answer.logprobs] == list(EVEN)


def test_where_memory_runs_out_both_are_tried_in_smaller_passes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Client(Engine(EngineOptions(microbatch_tokens=64)), base)
    client = Client(Engine(EngineOptions(microbatch_tokens=128)), base)
    for one in (expected, client):
        one.create()
    wanted = expected.backward(samples(0, LENGTHS))
    device = SmallDevice(monkeypatch, 30, CUDA)
    answer = client.backward(samples(0, LENGTHS))
    assert {tokens > 30 for _, tokens in device.passes} == {True, False}
    assert torch.equal(client.gradients, expected.gradients)
    assert answer.metrics == wanted.metrics


def test_where_one_sequence_does_not_fit_the_gradient_is_as_it_was(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(Engine(), base)
    client.create()
    client.backward(samples(1))
    before = client.gradients.clone()
    device = SmallDevice(monkeypatch, 20, CUDA)
    with pytest.raises(OpError, match="ran out of memory"):
        client.backward(samples(0, EVEN))
    assert device.passes[-1] == (1, 21)
    assert torch.equal(client.gradients, before)


def test_what_one_raises_waits_for_the_other() -> None:
    ended = threading.Event()

    def fails() -> None:
        raise ValueError("left")

    def takes_long() -> None:
        time.sleep(0.2)
        ended.set()

    with pytest.raises(ValueError, match="left"):
        beside.both(fails, takes_long)
    assert ended.is_set()


def test_a_number_of_threads_is_each_streams_own() -> None:
    torch.set_num_threads(4)
    assert beside.both(torch.get_num_threads, torch.get_num_threads) == (2, 2)
    assert torch.get_num_threads() == 4


def test_with_one_thread_nothing_is_done_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.delattr(beside, "both")
    run = made_run(made_base(made_model("Llama")), LoraSpec(rank=2, seed=0))
    _, gradient = computed(run, batch(EVEN, "cross_entropy", 0), 1000)
    assert gradient.any()
