"""A supervisor on stand-in kernels, which do as a test tells them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import pytest
import zmq

from jupyter_tinker.server.engine_client import EngineDied
from jupyter_tinker.server.supervisor import EngineSupervisor
from jupyter_tinker.wire import ops
from tests.server.fake_engine import STATUS

BATCH = ops.ForwardBackward("run", b"")
STEP = ops.OptimStep("run", ops.AdamParams())
SNAPSHOT = ops.SnapshotRun("run", "/file")  # is written beside what is done


class IOPub:
    """What a kernel says to everybody."""

    def __init__(self) -> None:
        self.topics = [b""]
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @property
    def socket(self) -> Any:
        return self

    def setsockopt(self, option: int, topic: bytes) -> None:
        (self.topics.remove if option == zmq.UNSUBSCRIBE else self.topics.append)(topic)

    async def get_msg(self, **_: Any) -> dict[str, Any]:
        return await self._said.get()

    def say(self, about: str, content: dict[str, Any]) -> None:
        self._said.put_nowait({"parent_header": {"msg_id": about}, "content": content})


class Kernel:
    """A kernel, its manager and its client in one: answers when it is told to."""

    def __init__(self, *, starts: bool | None = True) -> None:
        self.alive = self.has_kernel = self.shuts_down = False
        self.starts = starts
        self.asked: list[tuple[str, str]] = []  # message id and operation, not answered yet
        self._replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.iopub_channel = IOPub()
        self._count = 0

    # As a manager

    async def start_kernel(self, **_: Any) -> None:
        self.alive = self.has_kernel = True

    def client(self) -> Any:
        return self

    async def is_alive(self) -> bool:
        return self.alive

    @property
    def provisioner(self) -> Any:
        return self if self.has_kernel else None

    async def kill(self) -> None:
        self.alive = False

    async def shutdown_kernel(self, *, now: bool) -> None:
        assert not self.shuts_down, "a manager cannot be asked twice"
        self.shuts_down = True
        for _ in range(20):
            await asyncio.sleep(0)
        self.alive = self.has_kernel = False

    # As a client

    def start_channels(self, **_: Any) -> None:
        pass

    stop_channels = start_channels

    @property
    def session(self) -> Any:
        return self

    shell_channel = socket = session

    def msg(self, _: str, content: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        return {"header": {"msg_id": str(self._count)}, "content": content}

    def serialize(self, message: dict[str, Any]) -> list[bytes]:
        content = {k: v for k, v in message["content"].items() if k != "body"}
        return [json.dumps([message["header"]["msg_id"], content["op"]]).encode()]

    async def send_multipart(self, frames: list[bytes]) -> None:
        message_id, op = json.loads(frames[0])
        self.asked.append((message_id, op))
        if op == "start":
            if self.starts:
                self.answer(**asdict(STATUS))
            elif self.starts is False:
                self.alive = False

    async def get_msg(self, **_: Any) -> dict[str, Any]:
        return await self._replies.get()

    # As the test wants it

    def answer(self, number: int = 0, **result: Any) -> None:
        message_id, _ = self.asked.pop(number)
        content = {"ok": True, "seconds": 0.0, "result": result}
        self._replies.put_nowait({"parent_header": {"msg_id": message_id}, "content": content})

    def refuse(self) -> None:
        message_id, _ = self.asked.pop(0)
        content = {"ok": False, "seconds": 0.0, "error": "no", "category": "user"}
        self._replies.put_nowait({"parent_header": {"msg_id": message_id}, "content": content})


class Stage:
    """A supervisor, and the kernels that it has started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernels: list[Kernel] = []
        self.starts: bool | None = True  # None: it takes its time
        self.told: list[str] = []
        self.waits: list[float] = []
        self.rests = False  # pauses do not end by themselves
        self.supervisor = EngineSupervisor()
        self.supervisor.on_start = lambda status: self.told.append("started")
        self.supervisor.on_death = self.told.append
        monkeypatch.setattr(self.supervisor._address, "manager", self._make)
        sleep = asyncio.sleep

        async def soon(seconds: float) -> None:
            if seconds not in (0, 0.2):  # the watch's own
                self.waits.append(seconds)
                await sleep(3600 if self.rests else 0)
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", soon)

    def _make(self, _: EngineSupervisor) -> Kernel:
        assert not any(kernel.has_kernel for kernel in self.kernels), "they have one address"
        self.kernels.append(Kernel(starts=self.starts))
        return self.kernels[-1]

    async def ask(self, *asked: ops.Op) -> list[asyncio.Future[Any]]:
        generation = await self.supervisor.ensure_started()
        return [
            asyncio.ensure_future(await self.supervisor.begin(op, generation=generation))
            for op in asked
        ]

    async def asked(self, name: str) -> None:
        """Wait until the newest kernel is asked for an operation, which it has not answered."""
        while not self.kernels or name not in [op for _, op in self.kernels[-1].asked]:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def die(self, *waiting: asyncio.Future[Any]) -> list[bool]:
        """Of each that waits, whether the engine is said to have been at it."""
        self.kernels[-1].alive = False
        during = []
        for one in waiting:
            with pytest.raises(EngineDied) as died:
                await one
            during.append(died.value.during)
        while self.kernels[-1].has_kernel:  # noqa: ASYNC110 (a process sets no event when it dies)
            await asyncio.sleep(0)
        return during


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    def _tell(story: Callable[[Stage], Awaitable[None]]) -> None:
        async def whole() -> None:
            stage = Stage(monkeypatch)
            try:
                await story(stage)
            finally:
                await stage.supervisor.stop()

        asyncio.run(asyncio.wait_for(whole(), 10))

    return _tell
