"""The short ways of the tests to take snapshots of a run, and to bring it back to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft.tuners.lora import LoraLayer

from jupyter_tinker.engine.run import Run
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.ops import AdamParams, SnapshotInfo

from .reference import Client, samples

ADAM = AdamParams(learning_rate=1e-2, eps=1e-8, weight_decay=0.1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "snapshots" / "run" / "3.safetensors"


@pytest.fixture
def taken(client: Client, file: Path) -> SnapshotInfo:
    """Of a run with two steps behind it and half of a third."""
    client.create()
    for seed in range(2):
        one_step(client, seed)
    client.backward(samples(50))
    return take(client, file)


def wrap(client: Client) -> None:
    """As a pass by transformers and PEFT would."""
    run = client.engine.runs[client.run]
    run.base.wrappers.activate(run.adapter)


def wrapped_in(run: Run) -> set[str]:
    """The adapters that PEFT's layers around the base model's carry."""
    layers = [m for m in run.base.model.modules() if isinstance(m, LoraLayer)]
    return {name for layer in layers for name in layer.lora_A}


def take(client: Client, file: Path) -> SnapshotInfo:
    return SnapshotInfo(**client.engine.handle(ops.SnapshotRun(client.run, str(file)))[0])


def restore(client: Client, file: Path, sha256: str) -> ops.RunInfo:
    op = ops.RestoreRun(client.run, "tiny", client.base, str(file), sha256)
    return ops.run_info(client.engine.handle(op)[0])


def one_step(client: Client, seed: int) -> Any:
    answer = client.backward(samples(seed))
    stats = client.step(ADAM)
    return [lp.tobytes() for lp in answer.logprobs], stats.step, stats.grad_norm, stats.update_norm


def state(client: Client) -> list[Any]:
    """All that a run is."""
    run = client.engine.runs[client.run]
    optimizer = run.optimizer
    tensors = [client.weights, optimizer.mean, optimizer.square, optimizer.count, client.gradients]
    return [run.step, run.has_gradients, run.lora, *(t.numpy().tobytes() for t in tensors)]
