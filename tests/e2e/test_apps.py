"""The extension in each of Jupyter's servers, what a start costs, and what an end leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tinker

from tests.raw import RawRun, some_data
from tests.servers import Server

pytestmark = pytest.mark.e2e

APPS = {
    "server": ("-m", "jupyter_server"),
    "lab": ("-m", "jupyterlab"),
    "notebook": ("-m", "notebook"),
    "tinker": ("-m", "jupyter_tinker.cli"),
}


def test_pip_install_enables_the_extension() -> None:
    command = [sys.executable, "-m", "jupyter_server.extension.serverextension", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed = re.sub(r"\x1b\[\d+m", "", done.stdout + done.stderr)
    assert "jupyter_tinker enabled" in listed
    assert re.search(r"jupyter_tinker 0\.\d+\.\d+ OK", listed)


@pytest.mark.parametrize("base_url", ["/", "/user/ada/"])
@pytest.mark.parametrize("app", APPS)
def test_it_serves_in_every_app_and_under_a_prefix(start, app: str, base_url: str) -> None:
    server: Server = start(app=APPS[app], base_url=base_url)
    client = tinker.RestClient(base_url=server.url, api_key=server.key)
    models = client.get_server_capabilities().result().supported_models
    assert {(m.model_name, m.max_context_length) for m in models} == {("tiny", 512), ("other", 512)}
    assert server.url.endswith(f"{base_url}tinker")
    server.stop()


def test_jupyter_tinker_prints_what_a_shell_needs(a_server: Server) -> None:
    lines = [line for line in a_server.log.splitlines() if line.startswith("export ")]
    names = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    assert names["TINKER_BASE_URL"].endswith(f":{a_server.port}/tinker")
    assert names["TINKER_API_KEY"] == a_server.key


def _rss_mib(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


def test_an_idle_server_is_little_larger_than_a_bare_one(start) -> None:
    bare = start(app=(*APPS["server"], "--ServerApp.jpserver_extensions={}"), probe="api/status")
    ours = start(app=APPS["server"])
    assert ours.fetch("tinker/api/v1/get_server_capabilities")[0] == 200
    assert ours.fetch("tinker/runs")[0] == 200
    assert ours.engine_pid() is None
    assert _rss_mib(ours.process.pid) - _rss_mib(bare.process.pid) < 100
    bare.stop()
    ours.stop()


def _wait_for(said: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


def _gone(pid: int, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_jupyter_tinker_starts_the_engine_with_the_server(start) -> None:
    server = start(config={"TinkerExtension": {"engine_at_start": None}})
    _wait_for(lambda: server.fetch("tinker/status")[1]["engine"] == "running")
    engine = server.engine_pid()
    run = RawRun(server)
    run.result(run.forward_backward(1, some_data(1)))
    assert server.engine_pid() == engine
    server.stop()


def test_an_engine_that_cannot_start_with_the_server_is_told_of(start) -> None:
    config = {
        "TinkerExtension": {"engine_at_start": True},
        "EngineSupervisor": {"device": "mps"},  # which no machine with a /proc has
    }
    server = start(config=config)
    _wait_for(lambda: "The first request tries again." in server.log)
    assert "Traceback" not in server.log
    assert server.fetch("tinker/status")[1]["engine"] == "stopped"
    server.stop()


def test_a_server_ends_at_once_while_its_engine_starts(start) -> None:
    server = start(config={"TinkerExtension": {"engine_at_start": True}})
    _wait_for(server.engine_pid)
    engine = server.engine_pid()
    assert server.fetch("tinker/status")[1]["engine"] == "starting"
    server.stop()
    assert server.process.returncode == 0
    assert "engine started" not in server.log  # nobody waited for that
    assert "Traceback" not in server.log
    assert _gone(engine)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_engine_starts_on_first_need_and_ends_with_the_server(
    start, how: signal.Signals
) -> None:
    server = start()
    assert server.engine_pid() is None
    RawRun(server)
    engine = server.engine_pid()
    assert engine is not None
    if how is signal.SIGINT:
        server.process.send_signal(how)  # asks for a second one, as Jupyter does
    server.stop(how)
    assert _gone(engine)
    if how is signal.SIGTERM:
        assert list((server.home / "runtime").glob("tinker-engine*")) == []


def test_what_a_killed_server_left_is_swept_up(start) -> None:
    server = start()
    RawRun(server)
    server.stop(signal.SIGKILL)
    left = set((server.home / "runtime").glob("tinker-engine*"))
    assert left
    again = start(server.home)
    RawRun(again)
    assert not left & set((server.home / "runtime").glob("tinker-engine*"))


def test_the_engine_is_a_jupyter_kernel(a_server: Server) -> None:
    """`engine` is there for a person who attaches."""
    from jupyter_client.blocking import BlockingKernelClient

    run = RawRun(a_server)
    file = next((a_server.home / "runtime").glob("tinker-engine*.json"))
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        reply = client.execute_interactive(
            f"assert {run.id!r} in engine.runs", timeout=30, output_hook=lambda message: None
        )
        assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
    assert run.loss(run.forward_backward(1, some_data(0))) > 0


def test_the_connection_is_the_owners_alone(a_server: Server) -> None:
    RawRun(a_server)
    runtime = a_server.home / "runtime"
    for file in runtime.glob("tinker-engine*.json"):
        assert file.stat().st_mode & 0o077 == 0
    assert (a_server.home / "data" / "tinker" / "tinker.db").stat().st_mode & 0o077 == 0


def test_a_long_runtime_path_still_has_an_engine(start, tmp_path: Path) -> None:
    """Socket paths have a limit of about a hundred bytes."""
    home = tmp_path / ("long" * 15) / ("longer" * 15)
    server = start(home)
    assert RawRun(server).id


def train(run: RawRun, seq_id: int) -> float:
    """A batch and a step; the loss. Takes two numbers."""
    loss = run.forward_backward(seq_id, some_data(seq_id))
    step = run.optim_step(seq_id + 1)
    assert "metrics" in run.result(step)
    return run.loss(loss)


def test_a_run_outlives_its_engine(start) -> None:
    server = start()
    run, twin = RawRun(server), RawRun(server)
    for seq_id in (1, 3):
        assert train(run, seq_id) == train(twin, seq_id)
    run.result(run.forward_backward(5, some_data(5)))  # which is lost with the engine
    engine = server.engine_pid()
    assert engine is not None
    os.kill(engine, signal.SIGKILL)
    run.result(run.optim_step(6))
    train(twin, 5)
    assert train(run, 7) == train(twin, 7)
    assert server.engine_pid() not in (None, engine)
    kinds = [step["step"] for step in server.fetch(f"tinker/runs/{run.id}/steps")[1]["steps"]]
    assert kinds == [1, 2, 3, 4]


def test_an_engine_that_dies_at_work_costs_time(start) -> None:
    server = start()
    run, twin = RawRun(server), RawRun(server)
    data = some_data(1, count=200, length=60)
    asked = [run.forward_backward(1, data), run.optim_step(2)]
    until_busy(server, run)
    engine = server.engine_pid()
    assert engine is not None
    os.kill(engine, signal.SIGKILL)
    loss = run.loss(asked[0])
    run.result(asked[1])
    assert loss == twin.loss(twin.forward_backward(1, data))
    twin.result(twin.optim_step(2))
    assert train(run, 3) == train(twin, 3)


def until_busy(server: Server, run: RawRun) -> None:
    for _ in range(1000):
        if server.fetch(f"tinker/runs/{run.id}")[1]["state"] == "training":
            return
    raise AssertionError("the run does not train")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_outlives_its_server(start, how: signal.Signals) -> None:
    server = start()
    run, twin = RawRun(server), RawRun(server)
    done = run.forward_backward(1, some_data(1))
    loss = run.loss(done)
    run.result(run.optim_step(2))
    train(twin, 1)
    # The server is gone in the midst of what it has accepted.
    data = some_data(3, count=200, length=60)
    pending = [run.forward_backward(3, data), run.optim_step(4)]
    until_busy(server, run)
    server.stop(how)
    again = start(server.home, port=server.port)
    run.server = twin.server = again
    assert run.loss(done) == loss
    assert run.loss(pending[0]) == twin.loss(twin.forward_backward(3, data))
    assert run.result(pending[1])["metrics"]["optimizer_step"] == 2
    twin.result(twin.optim_step(4))
    assert train(run, 5) == train(twin, 5)
    assert len(again.fetch(f"tinker/runs/{run.id}/steps")[1]["steps"]) == 3
    assert run.id in again.command("runs").stdout


def test_a_run_without_requests_is_idle_after_a_restart(start) -> None:
    server = start()
    run = RawRun(server)
    saved = run.result(run.submit("save_weights", 1, path="kept"))["path"]
    server.stop(signal.SIGKILL)
    again = start(server.home, port=server.port)
    assert again.fetch(f"tinker/runs/{run.id}")[1]["state"] == "idle"
    assert again.engine_pid() is None
    session = again.fetch("tinker/api/v1/create_session", {"tags": []})[1]["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "path": saved, "optimizer": True}
    _, answer = run.post("load_weights", body)
    assert run.result(answer["request_id"])["model_id"] == f"{session}:train:0"
    assert train(run, 2) > 0
    assert again.fetch(f"tinker/runs/{run.id}")[1]["state"] == "waiting"
