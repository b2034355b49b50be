"""Snapshots: a run goes on from one to the last bit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.ops import SnapshotInfo

from . import snapshots
from .reference import Client, samples
from .snapshots import ADAM, one_step, restore, state, take, wrap, wrapped_in

file, taken = snapshots.file, snapshots.taken


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_a_run_goes_on_from_it_to_the_last_bit(
    models: Callable[[str], Path], file: Path, kind: str, accumulated: bool
) -> None:
    client = Client(Engine(), models(kind))
    created = client.create(rank=3, seed=5, train_attn=False)
    for seed in range(2):
        one_step(client, seed)
    if accumulated:
        client.backward(samples(50))
    info = take(client, file)
    assert info.step == 2
    at_snapshot = state(client)
    expected = [one_step(client, seed) for seed in range(2, 5)]
    end = state(client)

    fresh = Client(Engine(), models(kind), "another")
    restored = restore(fresh, file, info.sha256)
    assert restored == ops.RunInfo(created.lora, created.trainable_parameters, 2)
    assert state(fresh) == at_snapshot
    assert [one_step(fresh, seed) for seed in range(2, 5)] == expected
    assert state(fresh) == end


def test_a_fresh_run_can_be_kept(client: Client, file: Path) -> None:
    client.create(seed=3)
    info = take(client, file)
    expected = [one_step(client, 0), state(client)]
    fresh = Client(Engine(), Path(client.base))
    assert restore(fresh, file, info.sha256).step == 0
    assert [one_step(fresh, 0), state(fresh)] == expected


_ELSEWHERE = """
import sys
from pathlib import Path
import torch
from jupyter_tinker.engine.engine import Engine
from tests.engine.reference import Client
from tests.engine.snapshots import one_step, restore
torch.set_num_threads(1)
base, file, sha256 = sys.argv[1:]
client = Client(Engine(), Path(base))
restore(client, Path(file), sha256)
print(repr([one_step(client, seed) for seed in range(2, 4)]))
"""


def test_a_run_goes_on_in_another_process(client: Client, file: Path, taken: SnapshotInfo) -> None:
    arguments = [client.base, str(file), taken.sha256]
    there = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ELSEWHERE, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert there.returncode == 0, there.stderr
    assert there.stdout.strip() == repr([one_step(client, seed) for seed in range(2, 4)])


@pytest.mark.parametrize("accumulated", [False, True])
def test_a_living_run_goes_back_to_it(
    client: Client, file: Path, taken: SnapshotInfo, accumulated: bool
) -> None:
    expected = state(client)
    weights, run = client.weights, client.engine.runs["run"]
    one_step(client, 3)
    if accumulated:
        client.backward(samples(60))
    restore(client, file, taken.sha256)
    assert state(client) == expected
    # In place: whoever looks at the run goes on seeing it.
    assert client.engine.runs["run"] is run
    assert client.weights is weights


def test_gradients_that_are_not_in_it_are_dropped(client: Client, file: Path) -> None:
    client.create()
    one_step(client, 0)
    info, expected = take(client, file), state(client)
    client.backward(samples(60))
    restore(client, file, info.sha256)
    assert state(client) == expected
    assert not client.gradients.any()


@pytest.mark.parametrize(
    "other", [{"rank": 7}, {"seed": 8}, {"alpha": 4.0}, {"train_mlp": False}], ids=str
)
def test_a_run_of_another_shape_is_replaced(
    client: Client, file: Path, taken: SnapshotInfo, other: dict[str, Any]
) -> None:
    expected, continued = state(client), one_step(client, 3)
    client.unload()
    client.create(**other)
    client.backward(samples(0))
    wrap(client)
    restore(client, file, taken.sha256)
    assert state(client) == expected
    assert one_step(client, 3) == continued
    run = client.engine.runs["run"]
    assert not wrapped_in(run)


def test_what_the_file_holds(client: Client, file: Path, taken: SnapshotInfo) -> None:
    data = file.read_bytes()
    assert (taken.size_bytes, taken.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert taken.blocked_seconds > 0
    assert taken.write_seconds > 0
    run = client.engine.runs["run"]
    expected = {
        "weights": client.weights,
        "mean": run.optimizer.mean,
        "square": run.optimizer.square,
        "count": run.optimizer.count,
        "gradients": client.gradients,
    }
    tensors = load_file(file)  # safetensors' own reader
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["snapshot"])
    assert (about["format"], about["step"]) == (1, 2)
    assert about["base"] == run.base.fingerprint
    assert ops.LoraSpec(**about["lora"]) == run.lora
    client.step(ADAM)
    take(client, file)
    assert "gradients" not in load_file(file)
    assert os.listdir(file.parent) == [file.name]
