"""Attaching to the engine of a real server, by its WebSocket, while a client trains."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nbformat
import pytest
import tinker
from tinker import types
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.conftest import REPOSITORY
from tests.e2e.conftest import StartServer
from tests.servers import Server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore"),  # of the client that plays the browser
]

NOTEBOOK = REPOSITORY / "notebooks" / "inside_the_engine.ipynb"


def client_of(server: Server) -> tinker.TrainingClient:
    service = tinker.ServiceClient(base_url=server.url, api_key=server.key)
    return service.create_lora_training_client(base_model="tiny", rank=4, seed=3).result()


def step(client: tinker.TrainingClient, number: int) -> tuple[float, float]:
    tokens = [(7 * number + 3 * i) % 384 for i in range(12)]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * 11},
    )
    loss = client.forward_backward([datum], "cross_entropy")
    done = client.optim_step(types.AdamParams(learning_rate=1e-2))
    return loss.result().metrics["loss:sum"], done.result().metrics["grad_norm"]


class Training:
    """A client that makes steps until it is told to end."""

    def __init__(self, client: tinker.TrainingClient, steps: int = 10**6) -> None:
        self.numbers: list[tuple[float, float]] = []
        self.error: BaseException | None = None
        self.run_id = client.model_id
        self._client, self._steps = client, steps
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._train)
        self._thread.start()

    def _train(self) -> None:
        try:
            while len(self.numbers) < self._steps and not self._end.is_set():
                self.numbers.append(step(self._client, len(self.numbers)))
        except BaseException as error:
            self.error = error

    def end(self) -> list[tuple[float, float]]:
        self._end.set()
        self._thread.join(120)
        assert self.error is None
        return self.numbers

    async def after(self, steps: int) -> None:
        """Wait until so many more were made."""
        aim = len(self.numbers) + steps
        while len(self.numbers) < aim and self.error is None:  # noqa: ASYNC110 (in a thread)
            await asyncio.sleep(0.02)


class Notebook:
    """A page that is connected to a kernel."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._session = uuid.uuid4().hex
        self.statuses: list[str] = []  # of which no request of ours is the reason

    async def begin(self, code: str) -> str:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "version": "5.3"}
        header |= {"session": self._session, "username": "", "date": "2026-01-01T00:00:00Z"}
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        content |= {"user_expressions": {}, "stop_on_error": True}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        await self._socket.write_message(json.dumps({**message, "channel": "shell"}))
        return str(header["msg_id"])

    async def finish(self, message_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The reply, and the outputs."""
        reply, outputs, idle = None, [], False
        while reply is None or not idle:
            message = await self._next()
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != message_id:
                if kind == "status" and not message["parent_header"]:
                    self.statuses.append(content["execution_state"])
            elif kind == "execute_reply":
                reply, idle = content, idle or content["status"] == "aborted"
            elif kind == "status":
                idle = content["execution_state"] == "idle"
            elif kind in ("stream", "execute_result", "display_data", "error"):
                outputs.append(message)
        return reply, outputs

    async def text(self, code: str) -> str:
        reply, outputs = await self.finish(await self.begin(code))
        assert reply["status"] == "ok", reply
        return "".join(o["content"]["text"] for o in outputs if o["msg_type"] == "stream")

    async def _next(self) -> dict[str, Any]:
        message = await asyncio.wait_for(self._socket.read_message(), 60)
        assert isinstance(message, str), "the connection has ended"
        return dict(json.loads(message))


async def fetch(server: Server, path: str, *args: Any, **more: Any) -> tuple[int, Any]:
    """Beside the loop, on which the sockets are."""
    headers = {"Authorization": f"token {server.token}"}
    return await asyncio.to_thread(server.fetch, path, *args, headers=headers, key="", **more)


async def attach(server: Server) -> dict[str, Any]:
    status, found = await fetch(server, "tinker/engine/attach", {})
    assert status == 200, found
    return dict(found)


@asynccontextmanager
async def page(server: Server, kernel: str) -> AsyncIterator[Notebook]:
    url = f"{server.root}api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}"
    request = HTTPRequest(
        url.replace("http", "ws", 1), headers={"Authorization": f"token {server.token}"}
    )
    socket = await websocket_connect(request)
    try:
        yield Notebook(socket)
    finally:
        socket.close()


def tell(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(story(), 240)

    asyncio.run(whole())


def test_a_notebook_reads_weights_while_a_client_trains(start: StartServer) -> None:
    server = start()
    expected = Training(client_of(server), 30)
    expected._thread.join(120)
    watched = Training(client_of(server))
    seen: list[list[str]] = []

    async def story() -> None:
        kernel = (await attach(server))["kernel_id"]
        body = {"path": "n.ipynb", "type": "notebook", "name": "n", "kernel": {"id": kernel}}
        status, session = await fetch(server, "api/sessions", body)
        assert (status, session["kernel"]["id"]) == (201, kernel)
        async with page(server, kernel) as notebook:
            await notebook.text("import torch; torch.set_grad_enabled(False)")
            for _ in range(5):
                await watched.after(2)
                code = (
                    "run = engine.runs.latest; layer = run.adapter['model.layers.1.mlp.up_proj']\n"
                    "print(run.step, float(layer.B.norm())); layer.B.zero_()\n"
                    "t = engine.trace('a prompt', run); t.hidden.zero_()"
                )
                seen.append((await notebook.text(code)).split())

    tell(story)
    numbers = watched.end()
    steps, norms = zip(*seen, strict=True)
    assert [int(s) for s in steps] == sorted({int(s) for s in steps})
    assert len(set(norms)) == 5
    # To the last bit, cells or not.
    together = min(len(numbers), 30)
    assert together > 10
    assert numbers[:together] == expected.end()[:together]


def test_clients_wait_for_a_cell(a_server: Server) -> None:
    training = client_of(a_server)
    step(training, 0)

    async def story() -> None:
        kernel = (await attach(a_server))["kernel_id"]
        async with page(a_server, kernel) as notebook:
            cell = await notebook.begin("while True: pass")
            while (await fetch(a_server, "tinker/status"))[1]["cell_seconds"] is None:
                pass
            waits = Training(training, 1)
            await asyncio.sleep(0.5)
            assert waits.numbers == []
            (listed,) = (await fetch(a_server, "api/kernels"))[1]
            assert listed["execution_state"] == "busy"
            assert (await fetch(a_server, f"api/kernels/{kernel}/interrupt", {}))[0] == 204
            reply, _ = await notebook.finish(cell)
            assert reply["ename"] == "KeyboardInterrupt"
            await waits.after(1)
            assert len(waits.end()) == 1

    tell(story)


def test_a_key_opens_no_kernel(a_server: Server) -> None:
    key = a_server.fetch("tinker/keys", {"name": "no-kernels"})[1]["key"]
    assert a_server.fetch("tinker/engine/attach", {}, key=key)[0] == 403
    kernel = a_server.fetch("tinker/engine/attach", {})[1]["kernel_id"]

    async def story() -> None:
        url = f"{a_server.root}api/kernels/{kernel}/channels?session_id=x".replace("http", "ws", 1)
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            with pytest.raises(HTTPClientError) as refused:
                await websocket_connect(HTTPRequest(url, headers=headers))
            assert refused.value.code in (401, 403)

    tell(story)


def test_restarted_and_shut_down_it_loses_nothing(start: StartServer) -> None:
    server = start()
    expected = Training(client_of(server), 60)
    expected._thread.join(120)
    watched = Training(client_of(server), 60)

    async def story() -> None:
        kernel = (await attach(server))["kernel_id"]
        async with page(server, kernel) as notebook:
            await notebook.text("before = 1")
            await watched.after(3)
            first = server.engine_pid()
            status, model = await fetch(server, f"api/kernels/{kernel}/restart", {})
            assert (status, model["id"]) == (200, kernel)
            assert server.engine_pid() != first
            # The page is connected to the new one without having done anything.
            assert "False" in await notebook.text("print('before' in globals())")
            assert "restarting" in notebook.statuses
        await watched.after(3)
        second = server.engine_pid()
        assert (await fetch(server, f"api/kernels/{kernel}", method="DELETE"))[0] == 204
        assert server.engine_pid() != second
        await watched.after(3)
        (listed,) = (await fetch(server, "api/kernels"))[1]
        assert listed["id"] != kernel

    tell(story)
    numbers = watched.end()
    together = min(len(numbers), 60)
    assert together > 8
    assert numbers[:together] == expected.end()[:together]
    kinds = [
        event["kind"]
        for event in server.fetch("tinker/runs/" + watched._client.model_id + "/events")[1][
            "events"
        ]
    ]
    assert kinds.count("run_revived") >= 2
    assert "engine_died" not in server.log


def test_shut_down_it_frees_the_device(start: StartServer) -> None:
    server = start()
    client = client_of(server)
    step(client, 0)
    kernel = server.fetch("tinker/engine/attach", {})[1]["kernel_id"]
    headers = {"Authorization": f"token {server.token}"}
    assert server.fetch(f"api/kernels/{kernel}", method="DELETE", headers=headers)[0] == 204
    assert server.engine_pid() is None
    assert server.fetch("tinker/status")[1]["engine"] == "stopped"
    step(client, 1)
    assert server.engine_pid() is not None
    run = server.fetch(f"tinker/runs/{client.model_id}")[1]
    assert run["step"] == 2


def test_the_notebook_runs_on_the_engine_while_a_client_trains(a_server: Server) -> None:
    training = Training(client_of(a_server))
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    outputs: list[list[dict[str, Any]]] = []

    async def story() -> None:
        await training.after(3)
        kernel = (await attach(a_server))["kernel_id"]
        async with page(a_server, kernel) as notebook:
            for cell in cells:
                reply, shown = await notebook.finish(await notebook.begin(cell.source))
                assert reply["status"] == "ok", reply
                outputs.append(shown)
                await training.after(1)

    tell(story)
    training.end()
    everything = [output["content"] for shown in outputs for output in shown]
    text = "".join(str(content.get("text", "")) for content in everything)
    assert "norm" in text
    assert "B has moved by" in text
    assert "B has moved by 0\n" not in text
    assert "still there: True" in text
    figures = [c for c in everything if "application/vnd.plotly.v1+json" in c.get("data", {})]
    assert len(figures) == 2


def test_the_command_tells_how_to_open_a_console(a_server: Server) -> None:
    told = a_server.command("console", "--url", a_server.url, "--key", a_server.key)
    assert told.returncode == 0, told.stderr
    file = a_server.fetch("tinker/engine/attach", {})[1]["connection_file"]
    assert told.stdout == f"jupyter console --existing {file}\n"
    key = a_server.fetch("tinker/keys", {"name": "no-console"})[1]["key"]
    refused = a_server.command("console", "--url", a_server.url, "--key", key)
    assert refused.returncode == 1
    assert "not the kernels of this server" in refused.stderr
