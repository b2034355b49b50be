"""What takes long is told by a real server: an engine that starts, loads, and replays."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.follow import follow
from tests.e2e.conftest import StartServer
from tests.raw import RawRun, some_data
from tests.servers import Server

pytestmark = pytest.mark.e2e


class Watch:
    """What the stream and the status say while it lasts."""

    def __init__(self, server: Server) -> None:
        self.events: list[dict[str, Any]] = []
        self.status: list[dict[str, Any]] = []
        self._client = Client(server.url, server.key)
        self._over = threading.Event()
        for work in (self._follow, self._poll):
            threading.Thread(target=work, daemon=True).start()

    def _follow(self) -> None:
        try:
            for event in follow(self._client, after=0, progress=True):
                self.events.append(event)
        except RequestFailed:
            pass  # the server has ended

    def _poll(self) -> None:
        while not self._over.wait(0.02):
            try:
                self.status += self._client.get("status")["progress"]
            except RequestFailed:
                return

    def close(self) -> None:
        self._over.set()

    @property
    def told(self) -> list[dict[str, Any]]:
        """Tasks on the stream, in all their states."""
        return [{**e, **e["data"]} for e in self.events if e["kind"] == "progress"]

    def of(self, what: str) -> list[dict[str, Any]]:
        return [task for task in self.told if task.get("what") == what]


@pytest.fixture
def server(start: StartServer) -> Server:
    """It loads and steps slowly, and has one snapshot, of an early step."""
    slowly = {"PYTHONPATH": str(Path(__file__).parent.parent / "slowly")}
    return start(config={"TinkerExtension": {"snapshot_overhead": 0.001}}, env=slowly)


@pytest.fixture
def watch(server: Server) -> Iterator[Watch]:
    watch = Watch(server)
    yield watch
    watch.close()


def test_a_start_a_load_and_a_replay_are_told(server: Server, watch: Watch) -> None:
    run = RawRun(server)
    assert watch.of("starting the engine")
    loading = watch.of("loading tiny")
    assert [task["unit"] for task in loading] == ["tensors"] * len(loading)
    (total,) = {task["total"] for task in loading if task["total"]}
    done = [task["done"] for task in loading]
    assert done == sorted(done)
    assert 0 < done[-1] <= total
    assert len(done) >= 3
    assert {task["run_id"] for task in loading} == {None}
    assert any(task["what"] == "loading tiny" and task["done"] for task in watch.status)

    steps = 60
    for step in range(steps):
        run.forward_backward(2 * step + 1, some_data(step))
        last = run.optim_step(2 * step + 2)
    run.result(last)
    engine = server.engine_pid()
    assert engine is not None
    os.kill(engine, signal.SIGKILL)
    run.forward_backward(2 * steps + 1, some_data(0))
    run.result(run.optim_step(2 * steps + 2))
    replay = watch.of("replaying")
    assert {(task["run_id"], task["unit"]) for task in replay} == {(run.id, "steps")}
    assert max(task["done"] for task in replay) > 0
    assert any(task["what"] == "replaying" for task in watch.status)

    # All is over, and of all that was told among the events none has an id.
    numbers = {task["task"] for task in watch.told}
    assert Client(server.url, server.key).get("status")["progress"] == []
    over = {task["task"] for task in watch.told if task["over"]}
    assert numbers - over <= {max(numbers)}, "the last may still be on its way"
    ids = [event["id"] for event in watch.events if event["kind"] != "progress"]
    assert ids == list(range(1, len(ids) + 1))
    assert {task["id"] for task in watch.told} == {None}
    assert "Traceback" not in server.log
