"""The learning rate finder on a real engine, beside a run that an SDK client drives."""

from __future__ import annotations

import ast
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import tinker
from jupyter_client.blocking.client import BlockingKernelClient
from tinker import types

from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.runs import Run, resolve
from tests.e2e.conftest import StartServer
from tests.servers import Server

pytestmark = pytest.mark.e2e

BATCHES = 4
ADAM = {"beta2": 0.95, "eps": 1e-8, "grad_clip_norm": 1.0}


def _client(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model="tiny", rank=4, seed=3).result()


def _datum(number: int, sequence: int) -> types.Datum:
    """Batches repeat themselves, so that they can be learned."""
    start = 31 * (number % BATCHES) + 7 * sequence
    tokens = [(start + 3 * i) % 384 for i in range(17)]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * 16},
    )


def _step(client: tinker.TrainingClient, number: int, rate: float = 1e-4) -> dict[str, float]:
    """The loss per token, and what the step says."""
    batch = [_datum(number, sequence) for sequence in range(2)]
    loss = client.forward_backward(batch, "cross_entropy")
    step = client.optim_step(types.AdamParams(learning_rate=rate, **ADAM))
    return {"loss": loss.result().metrics["loss:sum"] / 32, **step.result().metrics}


def _run(server: Server, client: tinker.TrainingClient) -> Run:
    return resolve(Client(server.url, server.key), client.model_id)


def _found(server: Server, run: str) -> dict[str, Any]:
    state: dict[str, Any] = server.fetch(f"tinker/runs/{run}/lr_find")[1]
    return state


def _until(said: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := said()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)
    return value


def _runs_in_the_engine(server: Server) -> list[str]:
    """Asked of the engine itself, as of any kernel."""
    files = (server.home / "runtime").glob("tinker-engine-*.json")
    newest = max(files, key=lambda file: file.stat().st_mtime)
    kernel = BlockingKernelClient(connection_file=str(newest))
    kernel.load_connection_file()
    kernel.start_channels()
    try:
        asked = kernel.execute("", user_expressions={"runs": "list(engine._engine.runs)"})
        while (reply := kernel.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked:
            pass
    finally:
        kernel.stop_channels()
    told = reply["content"]["user_expressions"]["runs"]["data"]["text/plain"]
    runs: list[str] = ast.literal_eval(told)
    return runs


def test_a_run_is_to_the_last_bit_what_it_would_have_been(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client, twin = _client(service), _client(service)
    before = [_step(client, n) for n in range(BATCHES)]
    assert before == [_step(twin, n) for n in range(BATCHES)]
    # Amid a step: what is accumulated must be there afterwards, too.
    batch = [_datum(7, 0)]
    for each in (client, twin):
        each.forward_backward(batch, "cross_entropy").result()
    status, begun = a_server.fetch(f"tinker/runs/{client.model_id}/lr_find", {"steps": 100})
    assert (status, begun["status"]) == (200, "running")
    beside, n = [], BATCHES
    while _found(a_server, client.model_id)["status"] == "running" or len(beside) < 5:
        beside.append(_step(client, n))
        n += 1
    state = _found(a_server, client.model_id)
    assert (state["status"], state["batches"], state["step"]) == ("done", BATCHES, BATCHES)
    assert [_step(twin, n) for n in range(BATCHES, BATCHES + len(beside))] == beside
    rows = a_server.fetch(f"tinker/runs/{client.model_id}/steps")[1]["steps"]
    assert [row["step"] for row in rows] == list(range(1, BATCHES + len(beside) + 1))
    runs = a_server.fetch("tinker/runs")[1]["runs"]
    assert {run["run_id"] for run in runs} >= {client.model_id, twin.model_id}
    assert not [run for run in runs if "@" in run["run_id"]]
    assert not [name for name in _runs_in_the_engine(a_server) if "@" in name]


def test_the_suggestion_learns_and_a_hundredth_and_a_hundredfold_do_not(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    for n in range(BATCHES):
        _step(client, n, rate=1e-6)
    found = _run(a_server, client).lr_find(batches=BATCHES, progress=False)
    assert found.suggestion is not None, found
    assert found.steepest is not None
    assert found.lowest is not None
    assert found.suggestion == min(found.steepest, found.lowest / 10)
    assert len(found.rows) <= 60
    losses = {}
    for scale in (0.01, 1.0, 100.0):
        other = _client(service)
        steps = [_step(other, n, rate=found.suggestion * scale) for n in range(6 * BATCHES)]
        losses[scale] = math.fsum(step["loss"] for step in steps[-BATCHES:]) / BATCHES
    start = found.rows[0]["smoothed"]
    assert losses[1.0] < min(losses[0.01], losses[100.0])
    assert start - losses[1.0] > 3 * (start - losses[0.01])


def test_a_sweep_that_diverges_stops(a_server: Server, service: tinker.ServiceClient) -> None:
    client = _client(service)
    for n in range(BATCHES):
        _step(client, n)
    run = _run(a_server, client)
    found = run.lr_find(min=1e-3, max=1000.0, steps=200, stop_at=1.5, progress=False)
    assert found.diverged
    assert len(found.rows) < 200
    assert found.rows[-1]["learning_rate"] < 1000
    assert not [name for name in _runs_in_the_engine(a_server) if "@" in name]
    assert math.isfinite(_step(client, 1)["loss"])


def test_one_that_is_cancelled_frees_its_copy(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    for n in range(BATCHES):
        _step(client, n)
    path = f"tinker/runs/{client.model_id}/lr_find"
    # So low that it does not come to its end of itself.
    a_server.fetch(path, {"steps": 200, "min": 1e-12, "max": 1e-11})
    _until(lambda: len(_found(a_server, client.model_id)["points"]) > 3)
    (copy,) = [name for name in _runs_in_the_engine(a_server) if "@" in name]
    assert copy.startswith(client.model_id)
    status, _ = a_server.fetch(path, method="DELETE")
    assert status == 200
    _until(lambda: _found(a_server, client.model_id)["status"] == "cancelled")
    assert copy not in _runs_in_the_engine(a_server)


def test_the_engine_s_death_ends_the_sweep_and_not_the_run(
    start: StartServer,
) -> None:
    server = start()
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
        client, twin = _client(service), _client(service)
        before = [_step(client, n) for n in range(BATCHES)]
        assert before == [_step(twin, n) for n in range(BATCHES)]
        path = f"tinker/runs/{client.model_id}/lr_find"
        server.fetch(path, {"steps": 200, "min": 1e-12, "max": 1e-11})
        _until(lambda: len(_found(server, client.model_id)["points"]) > 3)
        pid = server.engine_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        state = _until(
            lambda: (s := _found(server, client.model_id))["status"] != "running" and s, 120
        )
        # Which of the two depends on what the engine was at.
        assert state["status"] in ("failed", "done")
        if state["status"] == "failed":
            assert "the engine died" in state["message"]
        after = [_step(client, n) for n in range(3)]
        assert after == [_step(twin, n) for n in range(3)]
        assert not [name for name in _runs_in_the_engine(server) if "@" in name]


def test_what_there_is_nothing_to_sweep_over_says_so(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    with pytest.raises(RequestFailed, match="has no recent batches"):
        _run(a_server, client).lr_find(progress=False)


def test_the_command_line(a_server: Server, service: tinker.ServiceClient) -> None:
    client = _client(service)
    client.forward_backward([_datum(1, 0)], "cross_entropy").result()
    address = ("--url", a_server.url, "--key", a_server.key)
    done = a_server.command("lr_find", client.model_id, "1e-5", "1e-1", "--steps", "12", *address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"LR finder of {client.model_id} after step 0: ")
