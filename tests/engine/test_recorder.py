"""Recorded passes and steps. Where there is no GPU, what stands for a graph is the work itself."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from jupyter_tinker.engine import inference, kv_cache, losses, train
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.fast import layer, recorded_step, recorder, recording, step
from jupyter_tinker.engine.fast.attention import Qkv, Spans
from jupyter_tinker.engine.fast.recorder import Recorder, Shape
from jupyter_tinker.engine.inference import InferenceModel
from jupyter_tinker.engine.run import Run
from jupyter_tinker.wire.ops import LoraSpec

from .reference import Client, samples
from .test_fast import batch, computed, made_base, made_model, made_run
from .test_steps import generated

_SPEC = LoraSpec(rank=2, seed=0, alpha=8.0)


class ByEnds:
    """Attention that reads where sequences end from memory, as a GPU's kernel does."""

    def __init__(self, qkv: Qkv, spans: Spans, scale: float, *, keep: bool) -> None:
        self.leaves = [x.detach().requires_grad_(keep) for x in qkv]
        places = torch.arange(len(qkv[0]))
        of = torch.searchsorted(spans.ends[1:], places, right=True)
        seen = (of[:, None] == of[None]) & (places[:, None] >= places[None])
        with torch.set_grad_enabled(keep):
            q, k, v = (x.transpose(0, 1)[None] for x in self.leaves)
            out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
            self.seen = out[0].transpose(0, 1).flatten(1)
        self.out = self.seen.detach()

    def backward(self, d_out: torch.Tensor) -> Any:
        return torch.autograd.grad(self.seen, self.leaves, d_out)


class Again:
    """In the place of a graph: does the work once more, into the memory of the first time."""

    made = 0

    def __init__(self, work: Callable[[], Any], result: Any) -> None:
        self.work, self.result = work, result
        Again.made += 1

    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        _copy(self.result, self.work())


def _copy(into: Any, new: Any) -> None:
    if isinstance(into, torch.Tensor):
        into.copy_(new)
    elif new is not None:
        for one, other in zip(into, new, strict=True):
            _copy(one, other)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(work: Callable[[], Any], device: torch.device, pool: object) -> tuple[Again, Any]:
        # A graph is recorded without being done: of a way back only the doing can be seen.
        result = None if work.__name__ == "_compute_back" else work()
        return Again(work, result), result

    monkeypatch.setattr(Again, "made", 0)
    monkeypatch.setattr(recording, "record", record)
    for module in (recorder, recording):
        monkeypatch.setattr(module, "possible", lambda device: True)
    for module in (layer, step):
        monkeypatch.setattr(module, "attend", ByEnds)


def made(spec: LoraSpec = _SPEC) -> Run:
    base = made_base(made_model("Qwen3"))
    assert base.decoder is not None
    base.recorder = Recorder.of(base.decoder, base.device)
    return made_run(base, spec)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), st.booleans())
def test_a_shape_holds_what_it_is_for_and_little_more(lengths: list[int], keep: bool) -> None:
    shape = Shape.holding(lengths, keep=keep)
    rest = shape.tokens - sum(lengths)
    assert 0 <= rest < max(64, sum(lengths) / 8)
    assert shape.sequences > len(lengths)
    assert shape.longest >= max(*lengths, rest)


def test_recorded_passes_compute_what_unrecorded_ones_do() -> None:
    run = made()
    requests = [batch(lengths, "ppo", n) for n, lengths in enumerate(([5, 9, 30], [44], [3, 41]))]
    unrecorded = made()
    unrecorded.base.recorder = None
    wanted = [computed(unrecorded, request, 1000) for request in requests]
    for _ in range(3):
        for request, (result, gradient) in zip(requests, wanted, strict=True):
            got = computed(run, request, 1000)
            torch.testing.assert_close(got[1], gradient, rtol=1e-4, atol=1e-5)
            assert got[0].loss_sum == pytest.approx(result.loss_sum, rel=1e-5)
    assert Again.made == 4  # two sequences and three make two shapes, each there and back


def test_runs_of_like_adapters_share_recordings_and_nothing_else() -> None:
    run = made()
    second = made_run(run.base, replace(_SPEC, seed=5), seed=9)
    wide = made_run(run.base, replace(_SPEC, rank=3), seed=9)
    request = batch([5, 9, 30], "cross_entropy", 0)
    runs = (run, second, wide)
    alone = [computed(each, request, 1000)[1] for each in runs]
    for _ in range(3):
        for each, wanted in zip(runs, alone, strict=True):
            torch.testing.assert_close(computed(each, request, 1000)[1], wanted)
    assert Again.made == 4


def test_gradients_add_up_over_passes() -> None:
    run = made()
    requests = [batch([5, 9, 30], "cross_entropy", seed) for seed in range(2)]
    wanted = sum(computed(run, request, 1000)[1] for request in requests)
    for _ in range(3):
        run.zero_grad()
        for request in requests:
            train.forward_backward(run, losses.LOSSES["cross_entropy"], request, 1000)
        torch.testing.assert_close(run.adapter.gradients, wanted)


def test_a_pass_without_a_way_back_leaves_the_next_one_right() -> None:
    run = made()
    request = batch([5, 9, 30], "cross_entropy", 0)
    first = computed(run, request, 1000)[1]
    broken = batch([5, 9, 30], "cross_entropy", 0)
    broken.data[0].loss_fn_inputs["weights"][:] = 3e38  # its loss is not finite: no way back
    for again in (broken, request, broken, request, request):
        gradient = computed(run, again, 1000)[1]
        if again is request:
            torch.testing.assert_close(gradient, first)


@pytest.mark.parametrize("what", ["_compute", "_compute_back"])
def test_what_cannot_be_recorded_is_computed_as_it_is(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = made()
    request = batch([5, 9, 30], "cross_entropy", 0)
    first = computed(run, request, 1000)[1]
    record = recording.record

    def failing(work: Callable[[], Any], *more: Any) -> Any:
        if work.__name__ == what:
            work.__self__._pass = None  # what it consumes is gone, and nothing is done
            raise RuntimeError("operation not permitted when stream is capturing")
        return record(work, *more)

    monkeypatch.setattr(recording, "record", failing)
    for _ in range(4):
        torch.testing.assert_close(computed(run, request, 1000)[1], first)
    assert caplog.text.count("cannot be recorded (operation not permitted") == 1


def test_memory_that_runs_out_while_it_is_recorded_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = made()
    requests = [batch([5, 9, 30], "cross_entropy", seed) for seed in range(2)]
    first = [computed(run, request, 1000)[1] for request in requests]
    record = recording.record
    left = [1]

    def scarce(*arguments: Any) -> Any:
        if left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return record(*arguments)

    monkeypatch.setattr(recording, "record", scarce)
    for request, wanted in zip(requests, first, strict=True):
        torch.testing.assert_close(computed(run, request, 1000)[1], wanted, rtol=1e-4, atol=1e-5)


def test_what_is_too_much_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made()
    request = batch([5, 9, 30], "cross_entropy", 0)
    first = computed(run, request, 1000)[1]
    monkeypatch.setattr(recorder, "_MOST_WORK", 10)
    for _ in range(3):
        torch.testing.assert_close(computed(run, request, 1000)[1], first)
    assert Again.made == 0


def test_no_more_recordings_are_kept_than_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MOST_RECORDINGS", 2)
    run = made()
    assert run.base.recorder is not None
    for length in (10, 70, 130, 200):
        computed(run, batch([length // 8] * 8, "cross_entropy", 0), 1000)
    assert len(run.base.recorder._passes) == 2
    run.base.recorder.forget()
    assert not run.base.recorder._passes


def test_nothing_is_kept_for_runs_once_the_last_of_a_base_model_is_gone(
    models: Callable[[str], Path],
) -> None:
    engine = Engine()
    clients = [Client(engine, models("untied"), name) for name in ("one", "other")]
    for client in clients:
        client.create()
        client.backward(samples(0))
    recorder = engine.runs["one"].base.recorder
    assert recorder is not None
    for client, kept in zip(clients, (True, False), strict=True):
        client.unload()
        assert bool(recorder._passes) == kept


def test_sampling_that_is_recorded_computes_what_it_does_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = made()
    model = InferenceModel(run.base)
    adapters = (None, model.lay_out(run.adapter.views, run.lora.scale))
    with monkeypatch.context() as patch:
        patch.setattr(recording, "possible", lambda device: False)
        wanted = [generated(model, weights, 3) for weights in adapters]
    before = Again.made
    for _ in range(3):
        for weights, expected in zip(adapters, wanted, strict=True):
            torch.testing.assert_close(generated(model, weights, 3), expected)
    # The steps over each of six stores, and prompts of one length with two adapters.
    assert Again.made - before == 6 + 2


@given(st.integers(1, 20_000))
def test_prompts_are_filled_up_to_few_lengths(length: int) -> None:
    filled = recorded_step.prompt_length(length)
    assert length <= filled <= max(16, 2 * length)
    assert filled % step.PRODUCT_ROWS == 0 or recorded_step.PROMPT_TOKENS % filled == 0


def test_a_store_is_freed_with_its_last_row_although_steps_over_it_are_recorded() -> None:
    run = made()
    model = InferenceModel(run.base)
    gc.disable()
    try:
        stores: list[weakref.ref[kv_cache.KeyValueStore]] = []
        made_store = kv_cache.KeyValueStore.__init__

        def noted(self: kv_cache.KeyValueStore, *arguments: Any) -> None:
            made_store(self, *arguments)
            stores.append(weakref.ref(self))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kv_cache.KeyValueStore, "__init__", noted)
            generated(model, None, 3)
        assert [store() for store in stores] == [None]
        assert not model._recordings
    finally:
        gc.enable()


def test_rows_are_filled_up_on_a_gpu_alone() -> None:
    x = torch.ones(3, 2)
    assert step.filled(x) is x
    assert inference.filled is step.filled
