"""The parts of the benchmark that are about sampling."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tinker import SamplingClient, types

from tests.bench import ours
from tests.bench.data import batches, tokens
from tests.bench.noise import Noise
from tests.bench.report import Report

_TIMEOUT = 600.0
_PROMPT, _NEW = 48, 64


def sampling(model: Path, report: Report) -> None:
    """Completions of one prompt, with and without an adapter, and many requests at once."""
    prompts = _prompts(model, 64)
    with ours.server(model) as server:
        client = ours.Client(server)
        client.steps(ours.datums(batches(model)["4x128"]), 2)
        adapted = client.training.save_weights_and_get_sampling_client().result(timeout=_TIMEOUT)
        base = client.service.create_sampling_client(base_model=ours.MODEL).result(timeout=_TIMEOUT)
        for name, sampler in (("base model", base), ("rank 32", adapted)):
            _sample(sampler, prompts[:1], 1, 2)
            report.patience.wait()
            with Noise() as noise:
                rates = [16 * _NEW / _sample(sampler, prompts[:1], 16, _NEW) for _ in range(3)]
            what, goal = f"16 x {_NEW} from {_PROMPT} tokens, {name}", ">= 256"
            report.add("sampling", what, rates, "tok/s", goal=goal, others=noise.cores)
        with Noise() as noise:
            alone = [_sample(base, [prompt], 1, _NEW) for prompt in prompts[:4]]
            together = _sample(base, prompts, 1, _NEW)
        ratio = 64 * statistics.median(alone) / together
        what = "64 requests at once / one after another"
        report.add("sampling", what, [ratio], "x", goal=">= 4", others=noise.cores)
        client.close()
        report.add("memory", "engine, peak, sampling too", [ours.engine_peak_mib(server)], "MiB")


def fairness(model: Path, report: Report) -> None:
    """What a generation costs a training step beside it, and the other way round."""
    data = ours.datums(batches(model)["4x128"])
    prompt = _prompts(model, 1)
    with ours.server(model) as server:
        client = ours.Client(server)
        base = client.service.create_sampling_client(base_model=ours.MODEL).result(timeout=_TIMEOUT)
        client.steps(data, 1)
        _sample(base, prompt, 1, 2)
        report.patience.wait()
        with Noise() as noise:
            alone, _ = client.steps(data, 4)
            with _generating(base, prompt):
                beside, _ = client.steps(data, 4)
        ratio = statistics.median(beside) / statistics.median(alone)
        report.add("fairness", "step of 4x128, alone", alone, "s", others=noise.cores)
        report.add("fairness", "step of 4x128, beside a generation", beside, "s")
        report.add("fairness", "  beside / alone", [ratio], "x")
        client.close()


def reinforcement(model: Path, report: Report) -> None:
    """Steps as `rl_loop` makes them: weights for a sampler, 8 x 8 samples, and a training step."""
    prompts = _prompts(model, 8)
    with ours.server(model) as server:
        client = ours.Client(server)
        _rl_step(client, prompts)
        report.patience.wait()
        shares, seconds = [], []
        with Noise() as noise:
            for _ in range(4):
                busy, began = _busy_seconds(client), time.perf_counter()
                _rl_step(client, prompts)
                seconds.append(time.perf_counter() - began)
                shares.append(100 * (1 - (_busy_seconds(client) - busy) / seconds[-1]))
        report.add("rl", f"step of 8 x 8 samples of {_NEW}", seconds, "s", others=noise.cores)
        report.add("rl", "  outside of the engine", shares, "%", goal="< 5")
        client.close()


def _prompts(model: Path, count: int) -> list[list[int]]:
    ids = tokens(model)
    return [ids[50 * i : 50 * i + _PROMPT] for i in range(count)]


def _sample(sampler: SamplingClient, prompts: list[list[int]], samples: int, new: int) -> float:
    """Seconds until all of them are there; nothing stops a sequence early."""
    params = types.SamplingParams(max_tokens=new, stop=[], seed=0)
    began = time.perf_counter()
    futures = [
        sampler.sample(types.ModelInput.from_ints(prompt), samples, params) for prompt in prompts
    ]
    for future in futures:
        sequences = future.result(timeout=_TIMEOUT).sequences
        assert [len(sequence.tokens) for sequence in sequences] == [new] * samples
    return time.perf_counter() - began


@contextmanager
def _generating(sampler: SamplingClient, prompt: list[list[int]]) -> Iterator[None]:
    """Keeps sixteen sequences in generation."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            _sample(sampler, prompt, 16, _NEW)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()


def _rl_step(client: ours.Client, prompts: list[list[int]]) -> None:
    sampler = client.training.save_weights_and_get_sampling_client().result(timeout=_TIMEOUT)
    params = types.SamplingParams(max_tokens=_NEW, stop=[], seed=0)
    futures = [sampler.sample(types.ModelInput.from_ints(p), 8, params) for p in prompts]
    data = []
    for prompt, future in zip(prompts, futures, strict=True):
        for number, sequence in enumerate(future.result(timeout=_TIMEOUT).sequences):
            advantage = 1.0 if number % 2 else -1.0
            data.append(_rl_datum(prompt, sequence, advantage))
    forward = client.training.forward_backward(data, "importance_sampling")
    optim = client.training.optim_step(types.AdamParams(learning_rate=1e-5))
    forward.result(timeout=_TIMEOUT)
    optim.result(timeout=_TIMEOUT)


def _rl_datum(prompt: list[int], sequence: types.SampledSequence, advantage: float) -> types.Datum:
    ids = prompt + list(sequence.tokens)
    before = np.zeros(len(prompt) - 1, np.float32)
    logprobs = np.asarray(sequence.logprobs, np.float32)
    advantages = np.full(len(logprobs), advantage, np.float32)
    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_numpy(np.array(ids[1:], np.int64)),
            "logprobs": types.TensorData.from_numpy(np.concatenate([before, logprobs])),
            "advantages": types.TensorData.from_numpy(np.concatenate([before, advantages])),
        },
    )


def _busy_seconds(client: ours.Client) -> float:
    """That the engine has spent on operations."""
    return float(client.server.fetch("tinker/status")[1]["busy_seconds"])
