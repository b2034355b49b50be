"""A line to one engine: operations go out, and answers and progress come back.

Knows nothing of processes, nor of when an engine is started and why one ended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import zmq

from ..wire import ops, progress
from .progress import Task, Tasks

Reply = tuple[dict[str, Any], list[Any]]  # a message's content and its buffers


class EngineDied(Exception):
    """The engine process ended while it was needed; what it held in memory is gone.

    `during` says whether the engine was at this very operation when it ended.
    """

    def __init__(self, message: str, *, during: bool = False) -> None:
        super().__init__(message)
        self.during = during


@dataclass(eq=False)
class Asked:
    """An operation that the engine was sent, and its answer."""

    op: ops.Op
    answer: asyncio.Future[Reply]
    task: Task | None = None  # once the engine has said how far it is


class EngineClient:
    """What is asked of one engine, through a client of its kernel."""

    def __init__(self, kernel: Any, tasks: Tasks) -> None:
        self._kernel = kernel
        self._progress = tasks
        self._pending: dict[str, Asked] = {}  # in the order of the engine's work
        self._listeners: list[asyncio.Task[None]] = []

    @property
    def operating(self) -> bool:
        """Whether the engine was asked for something that later operations wait for."""
        return any(asked.op.waits for asked in self._pending.values())

    def start(self) -> None:
        """Listen to the engine, which runs."""
        self._kernel.start_channels(stdin=False, hb=False)
        _subscribe(self._kernel.iopub_channel.socket)
        self._listeners = [
            asyncio.create_task(self._receive()),
            asyncio.create_task(self._hear()),
        ]

    def close(self, reason: str, *, blame: bool) -> None:
        """Tell `EngineDied` to all that waits; with `blame`, the engine ended at the first of it
        that others waited for."""
        for listener in self._listeners:
            listener.cancel()
        during = blame
        for asked in list(self._pending.values()):
            if not asked.answer.done():
                asked.answer.set_exception(EngineDied(reason, during=during and asked.op.waits))
                during = during and not asked.op.waits
        self._pending.clear()
        self._kernel.stop_channels()

    async def send(self, op: ops.Op) -> Asked:
        """Put an operation in the engine's line. Raises `EngineDied`."""
        content, buffers = ops.encode(op)
        session = self._kernel.session
        message = session.msg(ops.REQUEST, content)
        asked = Asked(op, asyncio.get_running_loop().create_future())
        message_id = message["header"]["msg_id"]
        self._pending[message_id] = asked
        asked.answer.add_done_callback(lambda _: self._forget(message_id, asked))
        # By the socket's own asynchronous send: `session.send` goes round it to the plain
        # socket, and can swallow the one signal by which the receiver learns of a reply.
        frames = [*session.serialize(message), *buffers]
        try:
            await self._kernel.shell_channel.socket.send_multipart(frames)
        except zmq.ZMQError as error:  # it died, and its sockets are closed
            asked.answer.cancel()
            raise EngineDied("the engine died") from error
        return asked

    def _forget(self, message_id: str, asked: Asked) -> None:
        self._pending.pop(message_id, None)
        if asked.task is not None:
            asked.task.close()
        if not asked.answer.cancelled():
            asked.answer.exception()  # who asked may be gone

    async def _receive(self) -> None:
        channel = self._kernel.shell_channel
        while True:
            message = await channel.get_msg(timeout=None)
            asked = self._asked(message)
            if asked is not None:
                asked.answer.set_result((message["content"], message.get("buffers", [])))

    async def _hear(self) -> None:
        """How far the engine is with what it is at."""
        channel = self._kernel.iopub_channel
        while True:
            message = await channel.get_msg(timeout=None)
            asked = self._asked(message)
            told = progress.read(message["content"])
            if asked is None or told is None:
                continue
            if asked.task is None:
                asked.task = self._progress.begin(told)
            asked.task.update(told)

    def _asked(self, message: dict[str, Any]) -> Asked | None:
        """What a message of the engine is about, if that still waits."""
        asked = self._pending.get(message["parent_header"].get("msg_id", ""))
        return None if asked is None or asked.answer.done() else asked


def _subscribe(iopub: zmq.Socket[Any]) -> None:
    """Of the kernel's messages to everybody, take those that are for us: there are two or more of
    others for each operation."""
    iopub.setsockopt(zmq.UNSUBSCRIBE, b"")
    iopub.setsockopt(zmq.SUBSCRIBE, progress.MESSAGE.encode())
