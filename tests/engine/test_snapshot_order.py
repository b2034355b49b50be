"""Snapshots are written beside what a run does next: in their order, bounded, and stepping back."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from jupyter_tinker.engine import snapshot, snapshot_writer
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.ops import SnapshotInfo

from . import snapshots
from .reference import Client, samples
from .snapshots import one_step, restore, state, take

file = snapshots.file


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
