"""What is kept of old runs: a quota, silent clients, and the command that cleans up."""

from __future__ import annotations

import signal
import sqlite3
import time
from typing import Any

import pytest

from tests.e2e.conftest import StartServer
from tests.raw import RawRun, some_data
from tests.servers import Server

pytestmark = pytest.mark.e2e

_SUCCESS = {"reason": {"type": "success"}, "detail": None}


def _steps(run: RawRun, first: int, last: int) -> list[float]:
    """Steps number `first` to `last`, counted from 1; their losses."""
    losses = []
    for step in range(first, last + 1):
        forward_backward = run.forward_backward(2 * step - 1, some_data(step))
        run.result(run.optim_step(2 * step))
        losses.append(run.loss(forward_backward))
    return losses


def _query(server: Server, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(server.home / "data" / "tinker" / "tinker.db", timeout=10) as db:
        return db.execute(query, values).fetchall()


def _until(server: Server, query: str, *values: Any) -> None:
    deadline = time.monotonic() + 60
    while not _query(server, query, *values):
        assert time.monotonic() < deadline, query
        time.sleep(0.1)


def test_a_run_whose_client_is_silent_leaves_the_engine_and_comes_back(start: StartServer) -> None:
    config = {"TinkerExtension": {"session_expiry_seconds": 1.0}}
    server = start(config=config)
    run, undisturbed = RawRun(server), RawRun(server)
    expected = _steps(undisturbed, 1, 4)
    first = _steps(run, 1, 2)
    deadline = time.monotonic() + 60
    while server.fetch(f"tinker/runs/{run.id}")[1]["state"] != "idle":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    unloaded = "SELECT 1 FROM events WHERE kind = 'run_unloaded' AND run_id = ?"
    assert _query(server, unloaded, run.id)
    assert first + _steps(run, 3, 4) == expected
    revived = _query(
        server, "SELECT data FROM events WHERE kind = 'run_revived' AND run_id = ?", run.id
    )
    assert '"replayed": 0' in revived[0][0]  # a snapshot was made before it left


def test_what_lives_is_left_alone(start: StartServer) -> None:
    server = start()
    run, undisturbed = RawRun(server), RawRun(server)
    expected = _steps(undisturbed, 1, 4)
    first = _steps(run, 1, 2)
    done = server.command("gc", "--older-than=0")
    assert (done.returncode, "No run has a history" in done.stdout) == (0, True), done.stderr
    first += _steps(run, 3, 3)
    server.stop(signal.SIGKILL)
    run.server = start(home=server.home)
    assert first + _steps(run, 4, 4) == expected
    run.server.stop()
    # Without a server nothing is spared, and none begins meanwhile.
    done = server.command("gc", "--older-than=0")
    assert run.id in done.stdout, done.stderr
    assert not list((server.home / "data" / "tinker" / "snapshots").glob("*/*"))
    audit = "SELECT actor FROM audit WHERE event = 'run_history_dropped'"
    assert ("jupyter tinker gc",) in _query(server, audit)


def test_old_histories_are_dropped_when_a_person_says_so(start: StartServer) -> None:
    server = start()
    run, other = RawRun(server), RawRun(server)
    _steps(run, 1, 3)
    run.result(run.submit("save_weights", 7, path="kept"))
    for one in (run, other):
        status, _ = one.post(f"sessions/{one.session_id}/finish", _SUCCESS)
        assert status == 200
    _until(server, "SELECT 1 FROM runs WHERE id = ? AND ended IS NOT NULL", run.id)
    assert "No run has a history" in server.command("gc").stdout
    dry = server.command("gc", "--older-than=0", "--dry-run")
    assert run.id in dry.stdout
    payloads = "SELECT 1 FROM payloads WHERE run_id = ?"
    assert _query(server, payloads, run.id)
    done = server.command("gc", "--older-than=0")
    assert (done.returncode, run.id in done.stdout) == (0, True), done.stderr
    assert not _query(server, payloads, run.id)
    assert not list((server.home / "data" / "tinker" / "snapshots").glob("*/*"))
    audit = "SELECT actor FROM audit WHERE event = 'run_history_dropped'"
    assert ("jupyter",) in _query(server, audit)
    assert len(server.fetch(f"tinker/runs/{run.id}/steps")[1]["steps"]) == 3
    again = RawRun(server)
    body = {"path": f"tinker://{run.id}/weights/kept", "optimizer": True}
    again.result(again.submit("load_weights", 1, **body))
    status, refused = server.fetch(f"tinker/runs/{run.id}/fork", {"step": 2})
    assert status == 404
    assert "history_bytes" in refused["detail"]
