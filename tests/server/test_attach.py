"""The engine on the server's list of kernels: who may attach, what is listed, and how it ends."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.session import Session
from tornado.httpclient import HTTPClientError

import jupyter_tinker.server.extension as extension_module
from jupyter_tinker.server.engine_kernel import EngineKernel
from jupyter_tinker.server.futures import Request
from jupyter_tinker.server.queue_state import queue_state
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from tests.server.fake_engine import FakeEngine

pytest_plugins = ["pytest_jupyter.jupyter_server"]


class Manager:
    """What of the supervisor's manager is asked for, and what the engine publishes."""

    def __init__(self, folder: Path) -> None:
        self.connection_file = str(folder / "engine.json")
        self.address = str(folder / "engine")
        self.session = Session(key=b"secret")
        self.interrupts = 0
        self._context = zmq.asyncio.Context.instance()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.bind(f"ipc://{self.address}-2")

    def get_connection_info(self) -> dict[str, Any]:
        ports = {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "hb"), 1)}
        return {"transport": "ipc", "ip": self.address, "key": "secret", "control_port": 5, **ports}

    def connect_iopub(self) -> Any:
        socket = self._context.socket(zmq.SUB)
        socket.connect(f"ipc://{self.address}-2")
        socket.subscribe(b"")
        return socket

    async def interrupt_kernel(self) -> None:
        self.interrupts += 1

    async def cell(self, *, runs: bool) -> None:
        message = self.session.msg(ops.CELL, {"runs": runs})
        frames = self.session.serialize(message, ident=ops.CELL_TOPIC)
        await self._socket.send_multipart(frames)

    def close(self) -> None:
        self._socket.close(0)


class Engine(FakeEngine):
    """With a kernel behind it, while it runs."""

    kernel: Manager

    @property
    def manager(self) -> Any:
        return self.kernel if self.running else None

    @property
    def cell_seconds(self) -> float | None:
        return None if self.cell_began is None else time.monotonic() - self.cell_began


@pytest.fixture(autouse=True)
def manager(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Manager(tmp_path_factory.mktemp("k"))
    monkeypatch.setattr(Engine, "kernel", made, raising=False)
    monkeypatch.setattr(extension_module, "EngineSupervisor", Engine)
    yield made
    made.close()


Fetch = Callable[..., Any]


@pytest.fixture
def fetch(jp_fetch: Any) -> Fetch:
    """Status and JSON of a route of the server."""

    async def _fetch(
        method: str, *route: str, headers: Any = None, body: Any = None
    ) -> tuple[int, Any]:
        data = json.dumps(body or {}) if method in ("POST", "PATCH") else None
        try:
            answer = await jp_fetch(*route, method=method, body=data, headers=headers or {})
        except HTTPClientError as error:
            return error.code, json.loads(getattr(error.response, "body", b"") or b"{}")
        return answer.code, json.loads(answer.body or b"null")

    return _fetch


async def attach(fetch: Fetch, method: str = "POST") -> dict[str, Any]:
    status, found = await fetch(method, "tinker", "engine", "attach")
    assert status == 200, found
    return dict(found)


async def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened() and time.monotonic() < end:  # noqa: ASYNC110 (comes by a socket)
        await asyncio.sleep(0.01)
    assert happened()


async def test_attaching_starts_the_engine_and_lists_it(
    fetch: Fetch, manager: Manager, service: TinkerService
) -> None:
    before = await attach(fetch, "GET")
    assert before == {
        "kernel_id": None,
        "kernel_name": "tinker-engine",
        "connection_file": None,
        "refusal": None,
        "command": None,
    }
    assert not service.supervisor.running
    assert (await fetch("GET", "api", "kernels"))[1] == []
    found = await attach(fetch)
    assert found["connection_file"] == manager.connection_file
    assert found["command"] == f"jupyter console --existing {manager.connection_file}"
    assert await attach(fetch) == found == await attach(fetch, "GET")
    (listed,) = (await fetch("GET", "api", "kernels"))[1]
    assert listed["id"] == found["kernel_id"]
    assert (listed["name"], listed["execution_state"]) == ("tinker-engine", "idle")


async def test_an_engine_that_a_client_started_is_listed_too(
    fetch: Fetch, service: TinkerService
) -> None:
    await service.supervisor.ensure_started()
    (listed,) = (await fetch("GET", "api", "kernels"))[1]
    assert listed["id"] == (await attach(fetch, "GET"))["kernel_id"]


async def test_a_key_attaches_to_nothing(fetch: Fetch, service: TinkerService) -> None:
    key = service.keys.create("laptop", by="test")
    for method in ("GET", "POST"):
        for header in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            sent = {"Authorization": "", **header}
            status, told = await fetch(method, "tinker", "engine", "attach", headers=sent)
            assert status == 403
            assert "'laptop' opens the Tinker API, and not the kernels" in told["detail"]
    assert not service.supervisor.running
    await attach(fetch)
    kernel = (await attach(fetch))["kernel_id"]
    for route in (("api", "kernels"), ("api", "kernels", kernel, "interrupt")):
        method = "POST" if route[-1] == "interrupt" else "GET"
        for header in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            sent = {"Authorization": "", **header}
            assert (await fetch(method, *route, headers=sent))[0] in (401, 403)
    status, _ = await fetch("POST", "tinker", "engine", "attach", headers={"Authorization": ""})
    assert status == 401


async def test_who_may_run_no_code_may_not_attach(
    fetch: Fetch, jp_serverapp: Any, service: TinkerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorizer = jp_serverapp.authorizer
    asked = []

    def is_authorized(_: object, user: object, action: str, resource: str) -> bool:
        asked.append((action, resource))
        return (action, resource) != ("execute", "kernels")

    monkeypatch.setattr(authorizer, "is_authorized", is_authorized)
    status, told = await fetch("POST", "tinker", "engine", "attach")
    assert status == 403
    assert "may not run code" in told["detail"]
    assert asked == [("execute", "kernels")]
    assert not service.supervisor.running


async def test_a_notebook_opens_on_it(fetch: Fetch) -> None:
    kernel = (await attach(fetch))["kernel_id"]
    body = {"path": "n.ipynb", "type": "notebook", "name": "n", "kernel": {"id": kernel}}
    status, session = await fetch("POST", "api", "sessions", body=body)
    assert status == 201
    assert session["kernel"]["id"] == kernel
    assert len((await fetch("GET", "api", "kernels"))[1]) == 1


async def test_an_interrupt_goes_to_the_kernel(fetch: Fetch, manager: Manager) -> None:
    kernel = (await attach(fetch))["kernel_id"]
    assert (await fetch("POST", "api", "kernels", kernel, "interrupt"))[0] == 204
    assert manager.interrupts == 1


async def test_shut_down_it_comes_back_as_another_kernel(
    fetch: Fetch, service: TinkerService
) -> None:
    kernel = (await attach(fetch))["kernel_id"]
    assert (await fetch("DELETE", "api", "kernels", kernel))[0] == 204
    assert not service.supervisor.running
    assert (await fetch("GET", "api", "kernels"))[1] == []
    assert (await attach(fetch, "GET"))["kernel_id"] is None
    await service.supervisor.ensure_started()
    (listed,) = (await fetch("GET", "api", "kernels"))[1]
    assert listed["id"] != kernel
    assert service.supervisor.generation == 2
    assert await told(service) == ["engine_started", "engine_stopped", "engine_started"]


async def told(service: TinkerService) -> list[str]:
    """The kinds of all events."""
    await service.events.emit(None, "guard", reason="the last one")
    found: list[str] = []
    with await service.events.watch(after=0) as watcher:
        while "guard" not in found:
            bodies = await watcher.next(5)
            assert bodies
            found += re.findall(r"^event: (\w+)$", b"".join(bodies).decode(), re.M)
    return found[:-1]


async def test_restarted_or_dead_it_stays_the_same_kernel(
    fetch: Fetch, service: TinkerService, jp_serverapp: Any
) -> None:
    engine: Any = service.supervisor
    kernel = (await attach(fetch))["kernel_id"]
    heard: list[str] = []
    jp_serverapp.kernel_manager.add_restart_callback(kernel, lambda: heard.append("restart"))
    jp_serverapp.kernel_manager.notify_connect(kernel)  # as a notebook does
    listed = jp_serverapp.kernel_manager.get_kernel(kernel)
    await listed.restart_kernel()
    assert (engine.generation, heard) == (2, ["restart"])
    engine.die()
    await until(lambda: bool(engine.running))
    assert (engine.generation, heard) == (3, ["restart"] * 2)
    assert (await attach(fetch))["kernel_id"] == kernel
    jp_serverapp.kernel_manager.notify_disconnect(kernel)
    engine.die()
    assert (await fetch("GET", "api", "kernels"))[1] == []
    assert not engine.running


async def test_the_server_does_not_cull_it(
    fetch: Fetch,
    service: TinkerService,
    jp_serverapp: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = jp_serverapp.kernel_manager
    kernel = (await attach(fetch))["kernel_id"]
    kernels.cull_idle_timeout = 1
    kernels.cull_connected = kernels.cull_busy = True
    listed = kernels.get_kernel(kernel)
    listed.last_activity = datetime.now(UTC) - timedelta(days=365)
    await kernels.cull_kernel_if_idle(kernel)
    assert service.supervisor.running
    assert (await fetch("GET", "api", "kernels"))[1][0]["id"] == kernel
    # As it would, were it not told when.
    spec = KernelSpec(display_name="Tinker engine", language="python")
    monkeypatch.setattr(EngineKernel, "kernel_spec", spec)
    await kernels.cull_kernel_if_idle(kernel)
    assert not service.supervisor.running


async def test_an_engine_that_died_leaves_nothing_on_the_lists(
    fetch: Fetch, service: TinkerService, jp_serverapp: Any
) -> None:
    engine: Any = service.supervisor
    kernels = jp_serverapp.kernel_manager
    for _ in range(3):
        kernel = (await attach(fetch))["kernel_id"]
        assert kernel in kernels._kernel_ports
        engine.die()
        for kept in (kernels._kernels, kernels._kernel_connections, kernels._kernel_ports):
            assert kernel not in kept


async def test_a_server_that_allows_other_kernels_only_says_so(
    fetch: Fetch, manager: Manager, jp_serverapp: Any
) -> None:
    jp_serverapp.kernel_spec_manager.allowed_kernelspecs = {"python3"}
    found = await attach(fetch)
    assert found["kernel_id"] is None
    assert found["connection_file"] == manager.connection_file
    assert "allows only the kernels python3" in found["refusal"]
    assert (await fetch("GET", "api", "kernels"))[1] == []


async def test_why_clients_wait_for_a_cell(
    fetch: Fetch, manager: Manager, service: TinkerService
) -> None:
    engine: Any = service.supervisor
    await attach(fetch)
    while engine.cell_began is None:
        await manager.cell(runs=True)  # a subscription takes its time to arrive
        await asyncio.sleep(0.01)
    assert (await fetch("GET", "tinker", "status"))[1]["cell_seconds"] >= 0
    (listed,) = (await fetch("GET", "api", "kernels"))[1]
    assert listed["execution_state"] == "busy"
    await manager.cell(runs=False)
    await until(lambda: engine.cell_began is None)
    assert (await fetch("GET", "tinker", "status"))[1]["cell_seconds"] is None


async def test_the_queue_state_tells_of_a_cell(
    service: TinkerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("f", "nobody:train:0", 1, "optim_step", b"")
    monkeypatch.setattr(service.futures, "pending", lambda _: request)
    monkeypatch.setattr(request, "accepted", time.monotonic() - 10)
    service.supervisor.cell_began = time.monotonic() - 12.3
    state = queue_state(service, "f")
    assert state["queue_state"] == "paused_capacity"
    assert (
        "a person's cell has been running on the engine's kernel for 12 s"
        in (state["queue_state_reason"])
    )
