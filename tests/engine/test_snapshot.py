"""Snapshots: a run goes on from one to the last bit, and what cannot be kept or read is told."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jupyter_tinker.engine import snapshot, snapshot_writer
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.train import Run
from jupyter_tinker.wire import ops, staging
from jupyter_tinker.wire.ops import AdamParams, OpError, SnapshotInfo

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
import torch
from jupyter_tinker.engine.engine import Engine
from tests.engine import test_snapshot as t
torch.set_num_threads(1)
base, file, sha256 = sys.argv[1:]
client = t.Client(Engine(), t.Path(base))
t.restore(client, t.Path(file), sha256)
print(repr([t.one_step(client, seed) for seed in range(2, 4)]))
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


# Order


class Disk:
    """Lets snapshots be written when told to."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.threads: list[threading.Thread] = []
        real = snapshot.write

        def write(copy: snapshot.Copy, file: Path) -> tuple[int, str]:
            self.threads.append(threading.current_thread())
            assert self.go.wait(60)
            return real(copy, file)

        patch.setattr(snapshot, "write", write)


def begin(client: Client, file: Path) -> Future[Any]:
    answer = client.engine.perform(ops.SnapshotRun(client.run, str(file)))
    assert isinstance(answer, Future)
    return answer


def test_it_has_the_state_of_its_place_in_the_order(
    client: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    one_step(client, 0)
    expected = state(client)
    disk = Disk(monkeypatch)
    answer = begin(client, file)
    one_step(client, 1)
    client.unload()
    assert not answer.done()
    assert not file.exists()
    disk.go.set()
    info = SnapshotInfo(**answer.result(60)[0])
    restore(client, file, info.sha256)
    assert state(client) == expected
    assert disk.threads != [threading.main_thread()]


def test_copies_that_wait_are_bounded(
    client: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    disk = Disk(monkeypatch)
    files = [file.with_name(f"{n}.safetensors") for n in range(3)]
    answers = [begin(client, one) for one in files[:2]]
    copied = []
    real = snapshot.copy

    def copy(*arguments: Any) -> snapshot.Copy:
        copied.append(sum(answer.done() for answer in answers))
        return real(*arguments)

    monkeypatch.setattr(snapshot, "copy", copy)
    timer = threading.Timer(0.2, disk.go.set)
    timer.start()
    answers.append(begin(client, files[2]))  # waits for the first to be written
    infos = [SnapshotInfo(**answer.result(60)[0]) for answer in answers]
    timer.join()
    assert len(copied) == 1
    assert infos[2].blocked_seconds > infos[1].blocked_seconds
    assert len({info.sha256 for info in infos}) == 1


def test_memory_is_used_again_without_mixing_runs(client: Client, file: Path) -> None:
    small = Client(client.engine, Path(client.base), "small")
    client.create(rank=6)
    small.create(rank=2)
    expected, infos = [], []
    for n in range(4):
        one = (client, small)[n % 2]
        one_step(one, n)
        if n >= 2:
            one.backward(samples(n))
        expected.append(state(one))
        infos.append(take(one, file.with_name(str(n))))
    for n, info in enumerate(infos):
        fresh = Client(Engine(), Path(client.base))
        restore(fresh, file.with_name(str(n)), info.sha256)
        assert state(fresh) == expected[n]


def test_little_memory_holds_one_copy_at_a_time(
    client: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.engine.handle(ops.Start(ops.EngineOptions(low_memory=True)))
    client.create()
    going, write = threading.Event(), snapshot.write
    copies: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def slowly(copy: snapshot.Copy, to: Path) -> tuple[int, str]:
        copies.add(copy.buffer)
        going.wait(10)
        return write(copy, to)

    monkeypatch.setattr(snapshot, "write", slowly)
    first = client.engine.perform(ops.SnapshotRun(client.run, str(file)))
    second = threading.Thread(target=take, args=(client, file.with_name("second")))
    second.start()
    second.join(0.2)
    assert (second.is_alive(), len(copies)) == (True, 1)
    going.set()
    second.join(10)
    assert first.result()[0]["size_bytes"] > 0
    assert not client.engine.snapshots._spare


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_the_writer_steps_back(client: Client, file: Path) -> None:
    client.create()
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    take(client, file)
    (writer,) = client.engine.snapshots._thread._threads
    assert os.getpriority(os.PRIO_PROCESS, writer.native_id) == snapshot_writer._LOWEST_PRIORITY
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours


# What goes wrong


def test_unknown_runs(client: Client, file: Path) -> None:
    with pytest.raises(OpError, match="no run 'run'"):
        take(client, file)


@contextmanager
def little_room() -> Iterator[None]:
    """No file may be longer than some kilobytes, for this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(client: Client, file: Path, taken: SnapshotInfo) -> None:
    before, kept = state(client), file.read_bytes()
    for target in (file, file.with_name("4.safetensors")):
        with little_room(), pytest.raises(OpError, match=r"could not be written .* MiB") as caught:
            take(client, target)
        assert caught.value.category == "server"
    assert os.listdir(file.parent) == [file.name]
    assert file.read_bytes() == kept
    assert state(client) == before
    assert take(client, file).sha256 == taken.sha256


def test_a_folder_that_cannot_be_made(client: Client, tmp_path: Path) -> None:
    client.create()
    (tmp_path / "not-a-folder").touch()
    with pytest.raises(OpError, match=r"could not be written to .*not-a-folder") as caught:
        take(client, tmp_path / "not-a-folder" / "1")
    assert caught.value.category == "server"
    take(client, tmp_path / "folder" / "1")


def test_what_killed_writers_left_is_swept(
    client: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    file.parent.mkdir(parents=True)
    mine = staging.fresh_file(file)
    with monkeypatch.context() as patch:
        patch.setattr(staging.os, "getpid", lambda: 2**22 + 7)  # above any process id
        dead = staging.fresh_file(file)
        aside = staging.fresh_file(tmp := file.parent.parent / "elsewhere")
        assert aside.parent == tmp.parent
    take(client, file)
    assert {path.name for path in file.parent.iterdir()} == {file.name, mine.name}
    assert not dead.exists()
    assert staging.sweep(file.parent.parent) == [aside]
    assert not aside.exists()
    assert mine.stat().st_mode & 0o077 == 0


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit of a weight": lambda data: flip(data, len(data) // 2),
    "a bit of the header": lambda data: flip(data, 40),
    "its length": lambda data: flip(data, 0),
    "truncated": lambda data: data[:-4],
    "longer": lambda data: data + b"\0" * 4,
    "empty": lambda data: b"",
}
UNREADABLE = ["its length", "truncated", "longer", "empty"]  # whatever SHA-256 is expected


@pytest.mark.parametrize("alive", [False, True])
@pytest.mark.parametrize(
    ("damage", "known"),
    [*((damage, False) for damage in DAMAGE), *((damage, True) for damage in UNREADABLE)],
)
def test_damage_is_told_and_the_run_unharmed(
    client: Client, file: Path, taken: SnapshotInfo, damage: str, known: bool, alive: bool
) -> None:
    data = DAMAGE[damage](file.read_bytes())
    file.write_bytes(data)
    one_step(client, 7)
    if not alive:
        client.unload()
    before = state(client) if alive else None
    with pytest.raises(OpError, match="is damaged") as caught:
        restore(client, file, hashlib.sha256(data).hexdigest() if known else taken.sha256)
    assert caught.value.category == "server"
    if alive:
        assert state(client) == before
    else:
        assert not client.engine.runs


def test_a_missing_file(client: Client, file: Path) -> None:
    with pytest.raises(OpError, match="there is no snapshot at") as caught:
        restore(client, file, "0" * 64)
    assert caught.value.category == "server"
    file.mkdir(parents=True)
    with pytest.raises(OpError, match="could not be read"):
        restore(client, file, "0" * 64)
    assert not client.engine.runs


def test_another_base_model(
    client: Client, models: Callable[[str], Path], file: Path, taken: SnapshotInfo
) -> None:
    other = Client(client.engine, models("tied"), "other")
    with pytest.raises(OpError, match="taken on 'tiny', whose configuration differs") as caught:
        restore(other, file, taken.sha256)
    assert caught.value.category == "server"
    before = state(client)
    client.base = str(models("tied"))
    with pytest.raises(OpError, match="configuration differs"):
        restore(client, file, taken.sha256)
    assert list(client.engine.runs) == ["run"]
    assert state(client) == before


def _about(change: Callable[[dict[str, Any]], Any]) -> Callable[..., None]:
    def changed(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        change(about)

    return changed


FOREIGN: dict[str, tuple[Callable[..., Any], str]] = {
    "another format": (lambda t, about: about.update(format=2), "format 2 and this engine reads 1"),
    "a tensor less": (lambda t, about: t.pop("square"), "tensors are not those of its run"),
    "a tensor more": (lambda t, about: t.update(more=t["mean"].clone()), "tensors are not those"),
    "short moments": (lambda t, about: t.update(mean=t["mean"][:-1].clone()), "tensors are not"),
    "short gradients": (
        lambda t, about: t.update(gradients=t["gradients"][:-1].clone()),
        "tensors are not those",
    ),
    "another type": (lambda t, about: t.update(mean=t["mean"].double()), "tensors are not those"),
    "a rank too large": (lambda t, about: about["lora"].update(rank=10**9), "does not fit"),
    "a rank that is none": (lambda t, about: about["lora"].update(rank="4"), "is damaged"),
    "no shape": (lambda t, about: about.pop("lora"), "is damaged"),
    "no step": (lambda t, about: about.pop("step"), "is damaged"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_that_was_made_up_is_refused(
    client: Client, file: Path, taken: SnapshotInfo, case: str
) -> None:
    change, sentence = FOREIGN[case]
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["snapshot"])
    tensors = load_file(file)
    change(tensors, about)
    save_file(tensors, file, {"snapshot": json.dumps(about)})
    before = state(client)
    with pytest.raises(OpError, match=sentence) as caught:
        restore(client, file, hashlib.sha256(file.read_bytes()).hexdigest())
    assert caught.value.category == "server"
    assert state(client) == before


def test_safetensors_without_our_header(client: Client, file: Path) -> None:
    client.create()
    file.parent.mkdir(parents=True)
    save_file({"weights": client.weights.clone()}, file)
    with pytest.raises(OpError, match="is damaged"):
        restore(client, file, hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.parametrize("shape", [{}, {"rank": 7}], ids=["in place", "replaced"])
def test_an_interrupted_restore_leaves_the_run(
    client: Client,
    file: Path,
    taken: SnapshotInfo,
    shape: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.unload()
    client.create(**shape)
    one_step(client, 7)
    client.backward(samples(8))
    wrap(client)
    before = state(client)
    real = torch.Tensor.copy_
    own = client.weights

    def interrupted(tensor: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        # The moments, after the weights.
        if tensor.shape == source.shape and tensor.dim() == 1 and tensor is not own:
            patch.undo()
            raise KeyboardInterrupt
        return real(tensor, source)

    put = snapshot._put

    def first_weights(*arguments: Any) -> None:
        patch.setattr(torch.Tensor, "copy_", interrupted)
        put(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_put", first_weights)
        with pytest.raises(KeyboardInterrupt):
            restore(client, file, taken.sha256)
    assert state(client) == before
    run = client.engine.runs["run"]
    assert wrapped_in(run) == {run.adapter.name}
    assert restore(client, file, taken.sha256).step == 2
