"""Runs side by side on one base model, and the same numbers every time."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from peft.tuners.lora import LoraLayer

from jupyter_tinker.engine import evaluation
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.logprobs import Scores
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.ops import AdamParams, OpError

from .reference import Client, request, samples

Models = Callable[[str], Path]

ADAM = AdamParams(learning_rate=1e-2, eps=1e-8)


def train(client: Client, seeds: range) -> list[Any]:
    return [one_step(client, seed) for seed in seeds]


def one_step(client: Client, seed: int) -> Any:
    answer = client.backward(samples(seed))
    stats = client.step(ADAM)
    return [lp.tobytes() for lp in answer.logprobs], stats.grad_norm, stats.update_norm


def test_the_same_again_is_the_same_to_the_last_bit(base: Path) -> None:
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        client = Client(Engine(), base)
        client.create()
        results.append((train(client, range(3)), client.weights.numpy().tobytes()))
    assert results[0] == results[1]


def test_another_seed_is_another_run(engine: Engine, base: Path) -> None:
    one, other = Client(engine, base, "one"), Client(engine, base, "other")
    one.create(seed=1)
    other.create(seed=2)
    assert not torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_interleaved_runs_have_the_numbers_they_have_alone(models: Models, kind: str) -> None:
    specs: list[dict[str, Any]] = [
        {"rank": 4, "seed": 1},
        {"rank": 7, "seed": 2, "train_mlp": False, "train_unembed": False},
        {"rank": 2, "seed": 3, "train_attn": False},
    ]
    alone = []
    for spec in specs:
        client = Client(Engine(), models(kind))
        client.create(**spec)
        alone.append(train(client, range(3)))
    engine = Engine()
    clients = [Client(engine, models(kind), f"run.{n}:train:0") for n in range(3)]
    together: list[list[Any]] = [[], [], []]
    for client, spec in zip(clients, specs, strict=True):
        client.create(**spec)
    for seed in range(3):
        for client, results in zip(clients, together, strict=True):
            results.append(one_step(client, seed))
        if seed == 1:  # a run that comes and goes leaves no trace
            passing = Client(engine, models(kind), "passing")
            passing.create(rank=3)
            passing.backward(samples(9))
            passing.unload()
    assert together == alone


def test_unloading_frees_the_adapter_and_unwraps_the_base(client: Client) -> None:
    client.create()
    base = client.engine.runs["run"].base
    base.decoder, model = None, base.model
    client.backward(samples(0))
    client.step()
    assert any(isinstance(module, LoraLayer) for module in model.modules())
    weights = weakref.ref(client.weights)
    client.unload()
    gc.collect()
    assert weights() is None
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    client.create()  # the name is free again
    client.unload()
    client.unload()  # and an unknown run is not an error


def test_the_first_weights_are_as_peft_draws_them(client: Client) -> None:
    client.create(rank=4)
    for key, view in client.engine.runs["run"].adapter.views.items():
        if "lora_B" in key:
            assert not view.any()
        else:
            bound = 1 / view.shape[1] ** 0.5
            assert view.abs().max() <= bound
            assert view.abs().max() > 0.8 * bound


def test_a_fresh_run_equals_its_base(client: Client) -> None:
    client.create()
    data = samples(0)
    base = client.engine.runs["run"].base
    answer = client.forward(data)
    with torch.no_grad():
        for sample, lp in zip(data, answer.logprobs, strict=True):
            logits = base.output_layer.logits(base.hidden_states(torch.tensor([sample.tokens]))[0])
            expected = torch.log_softmax(logits, -1).gather(
                1, torch.from_numpy(sample.targets)[:, None]
            )
            np.testing.assert_allclose(lp, expected[:, 0].numpy(), atol=1e-5)


STEP_WITHOUT_PEFT = """
import sys
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops
engine = Engine()
engine.handle(ops.CreateRun("run", "tiny", sys.argv[1], ops.LoraSpec(rank=4, seed=7)))
engine.handle(ops.ForwardBackward("run", sys.stdin.buffer.read()))
engine.handle(ops.OptimStep("run", ops.AdamParams()))
print("peft" in sys.modules)
"""


def test_what_needs_no_peft_does_not_import_it(base: Path) -> None:
    """It would take a part of every cold start."""
    done = subprocess.run(
        [sys.executable, "-c", STEP_WITHOUT_PEFT, base],
        input=request(samples(0)),
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [b"False"]


def test_gradients_stay_views_of_one_buffer(client: Client) -> None:
    client.create()
    client.engine.runs["run"].base.decoder = None
    train(client, range(2))
    client.backward(samples(0))
    run = client.engine.runs["run"]
    for key, view in run.adapter.gradient_views.items():
        path, side, _ = key.rsplit(".", 2)
        parameter = getattr(run.base.model.get_submodule(path), side)[run.adapter.name].weight
        assert parameter.grad.data_ptr() == view.data_ptr()
        assert parameter.data_ptr() == run.adapter.views[key].data_ptr()


def test_zero_grad_drops_what_was_accumulated(client: Client) -> None:
    client.create()
    client.backward(samples(0))
    client.zero_grad()
    assert client.step(ADAM).grad_norm == 0


def test_status_tells_what_there_is(client: Client) -> None:
    options = ops.EngineOptions(device="cpu", microbatch_tokens=64)
    started = ops.EngineStatus(**client.engine.handle(ops.Start(options))[0])
    assert (started.device, started.dtype, started.runs) == ("cpu", "float32", [])
    info = client.create(rank=4)
    assert info.trainable_parameters == client.weights.numel()
    assert info.step == 0
    status = ops.EngineStatus(**client.engine.handle(ops.Status())[0])
    assert (status.base_models, status.runs) == (["tiny"], ["run"])
    assert status.memory_bytes > 1 << 20
    assert status.memory_total_bytes is not None
    assert status.memory_bytes < status.memory_total_bytes <= psutil.virtual_memory().total
    with pytest.raises(OpError, match="restart"):
        client.engine.handle(ops.Start(ops.EngineOptions(dtype="bfloat16")))


def test_bfloat16_base_with_float32_adapter(base: Path) -> None:
    client = Client(Engine(ops.EngineOptions(dtype="bfloat16")), base)
    client.create()
    exact = Client(Engine(), base)
    exact.create()
    losses = []
    for seed in range(6):
        data = samples(0)
        losses.append(client.backward(data).stats.loss_sum)
        reference = exact.backward(data)
        assert client.weights.dtype == torch.float32
        if seed == 0:
            cosine = torch.cosine_similarity(client.gradients, exact.gradients, dim=0)
            assert cosine > 0.99
            assert losses[0] == pytest.approx(reference.stats.loss_sum, rel=0.1, abs=2)
        client.step(ADAM)
        exact.step(ADAM)
    assert losses[-1] < losses[0]


def test_an_interrupted_operation_leaves_no_gradients(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    client.engine.options = ops.EngineOptions(microbatch_tokens=20)
    client.backward(samples(0))
    before = client.gradients.clone()
    calls = []

    def scores(*arguments: Any) -> Scores:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Scores(*arguments)

    monkeypatch.setattr(evaluation, "Scores", scores)
    with pytest.raises(KeyboardInterrupt):
        client.backward(samples(1))
    assert torch.equal(before, client.gradients)
    assert len(calls) == 2


def test_out_of_memory_is_a_sentence(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.create()

    def scores(*_: Any) -> Scores:
        torch.empty(1 << 60)
        raise AssertionError("there is no such memory")

    monkeypatch.setattr(evaluation, "Scores", scores)
    with pytest.raises(OpError, match="ran out of memory in forward_backward") as caught:
        client.backward(samples(0))
    assert caught.value.category == "server"
    assert not client.gradients.any()
