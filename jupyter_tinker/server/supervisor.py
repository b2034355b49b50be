"""Starts, watches and stops the engine kernel, and carries operations to it.

Knows nothing of runs' order, futures or the database.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.connect import port_names
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import Bool, Enum, Float, Integer, Unicode
from traitlets.config import LoggingConfigurable

from ..wire import ops, progress
from ..wire.progress import Progress
from .progress import Task, Tasks

# The address of a Unix socket must fit into 107 bytes; the port's number and a dash come behind.
_LONGEST_IPC_PREFIX = 90
_LONGEST_BACK_OFF = 30.0  # seconds
_PREFIX = "tinker-engine-"  # of our files in the runtime directory; the server's process id follows
_numbers = itertools.count()


class EngineDied(Exception):
    """The engine process ended while it was needed; what it held in memory is gone.

    `during` says whether the engine was at this very operation when it ended.
    """

    def __init__(self, message: str, *, during: bool = False) -> None:
        super().__init__(message)
        self.during = during


class EngineNotStarted(EngineDied):
    """A new engine process ended, or said nothing, before it could do anything."""


@dataclass(eq=False)
class _Asked:
    """An operation that the engine was sent, and its answer: a reply's content and buffers."""

    op: ops.Op
    answer: asyncio.Future[tuple[dict[str, Any], list[Any]]]
    task: Task | None = None  # once the engine has said how far it is


# glibc keeps what is freed below what is in use, save what has a mapping of its own.
_GIVE_BACK = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
}


class EngineKernelManager(AsyncKernelManager):
    """A kernel manager that always starts our engine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # -P: modules must not be taken from the server's working directory.
        argv = [sys.executable, "-P", "-m", "jupyter_tinker.engine.kernel"]
        return KernelSpec(
            argv=[*argv, "-f", "{connection_file}"],
            display_name="Tinker engine",
            language="python",
            metadata={"supported_encryption": "curve"},
        )


class EngineSupervisor(LoggingConfigurable):
    """The engine kernel's life, from the server's event loop."""

    device = Unicode(
        "auto",
        config=True,
        help="""Where the model computes: "auto" (CUDA if there is a device, else the CPU), "cpu",
        "cuda", "cuda:1", "mps".""",
    )
    dtype = Enum(
        ["auto", "float32", "bfloat16"],
        default_value="auto",
        config=True,
        help="""Number format of the base model: "auto" is bfloat16 on CUDA and float32 elsewhere.
        Adapters and optimizer states are always float32.""",
    )
    attention = Enum(
        ["auto", "sdpa", "eager", "flash_attention_2"],
        default_value="auto",
        config=True,
        help="""Attention kernel: "auto" is flash_attention_2 where flash-attn is installed and the
        model runs on CUDA in bfloat16, else PyTorch's scaled dot product attention.""",
    )
    microbatch_tokens = Integer(
        0,
        min=0,
        config=True,
        help="""Most tokens, padding included, in one forward pass of training. Larger batches are
        split; lower it when the device runs out of memory. 0 is 1024 on the CPU and 4096 on a
        GPU.""",
    )
    num_threads = Integer(
        0,
        min=0,
        config=True,
        help="""CPU threads the engine computes with; 0 is PyTorch's choice, or as many as the
        container that it runs in is granted.""",
    )
    sampling_cache_mb = Integer(
        0,
        min=0,
        config=True,
        help="""Mebibytes of memory for the keys and values of sequences that are being sampled;
        what does not fit waits. 0 is 1024 on the CPU and a quarter of a GPU's memory.""",
    )
    low_memory = Bool(
        False,
        config=True,
        help="""For machines of little memory: freed memory goes back to the system at once, and
        sampling on the CPU keeps no second copy of the weights. Both take time. What is sampled may
        then differ in its last bits by what is sampled beside it.""",
    )
    start_timeout = Float(
        120.0, config=True, help="Seconds the engine may take from its start to its first answer."
    )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.generation = 0  # rises with every engine that was started
        self.busy_seconds = 0.0  # that engines have spent on operations
        self.status: ops.EngineStatus | None = None
        self.progress = Tasks()
        self._manager: EngineKernelManager | None = None
        self._client: Any = None
        self._socket_dir: Path | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._pending: dict[str, _Asked] = {}  # in the order of the engine's work
        self._starting = asyncio.Lock()
        self._deaths = 0  # of engines, one after another, that did nothing of what was asked
        self._ending = False
        # All engines of a server have one address and one key, so that notebooks stay connected.
        self._name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self._key = uuid.uuid4().hex.encode()
        self.cell_began: float | None = None  # by the monotonic clock; None: no person's cell runs
        self.on_start: Callable[[ops.EngineStatus], None] = lambda status: None
        self.on_death: Callable[[str], None] = lambda reason: None

    @property
    def running(self) -> bool:
        return self._client is not None

    @property
    def starting(self) -> bool:
        return self._starting.locked()

    @property
    def manager(self) -> EngineKernelManager | None:
        """Of the engine's kernel, while it runs."""
        return self._manager if self.running else None

    @property
    def cell_seconds(self) -> float | None:
        """For how long a person's cell has run on the engine's kernel; None: none does."""
        return None if self.cell_began is None else time.monotonic() - self.cell_began

    @property
    def operating(self) -> bool:
        """Whether the engine was asked for something that later operations wait for."""
        return any(asked.op.waits for asked in self._pending.values())

    def holds(self, generation: int) -> bool:
        """Whether the engine lives that had this generation."""
        return self.running and self.generation == generation

    async def ensure_started(self) -> int:
        """Start the engine if there is none. Returns its generation. Raises `EngineNotStarted`.

        One whose predecessors died without having done anything is started after a while only.
        """
        async with self._starting:
            if self._client is None and not self._ending:
                if self._deaths > 1:
                    await asyncio.sleep(min(_LONGEST_BACK_OFF, 2.0 ** (self._deaths - 2) / 2))
                await self._start()
            if self._client is not None:
                return self.generation
        # What is asked now is done by the next server, and nobody is told otherwise.
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        return await never

    async def request(
        self, op: ops.Op, *, generation: int | None = None
    ) -> tuple[dict[str, Any], list[Any]]:
        """Have the engine do `op`; returns result and buffers.

        Raises `OpError` for what the engine refused and `EngineDied` if it ended meanwhile, or is
        not the one of that generation. Operations are done one after another in the order of the
        calls.
        """
        return await (await self.begin(op, generation=generation))

    async def begin(
        self, op: ops.Op, *, generation: int | None = None
    ) -> Awaitable[tuple[dict[str, Any], list[Any]]]:
        """Put `op` in the engine's line; what is returned waits for its result, as `request`."""
        if generation is None:
            await self.ensure_started()
        elif not self.holds(generation):
            raise EngineDied("the engine that held it is gone")
        return self._answer(await self._send(op))

    async def release(self, reason: str) -> bool:
        """End the engine until it is needed again; whether there was one. What it was asked for is
        told `EngineDied`, and is not to blame."""
        async with self._starting:
            if not self.running:
                return False
            await self._teardown(reason, blame=False)
            return True

    async def stop(self) -> None:
        """End the engine, for good: who asks it for something waits until the process ends."""
        self._ending = True
        async with self._starting:
            await self._teardown("the engine was shut down")

    # Starting and stopping

    async def _start(self) -> None:
        with self.progress.begin(Progress("starting the engine")):
            await self._start_kernel()
        assert self.status is not None
        self.log.info("Tinker engine started: %s", self.status.reason)
        self.on_start(self.status)

    async def _start_kernel(self) -> None:
        manager = self._make_manager()
        self._manager = manager
        env = {
            # For how long threads spin before they sleep. By default so long that the engine is
            # ten times as slow as soon as a notebook's kernel computes on the same cores; without
            # any, a third slower alone.
            "GOMP_SPINCOUNT": "2000",
            **(_GIVE_BACK if self.low_memory else {}),
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",  # the catalogue names local folders only
        }
        try:
            await manager.start_kernel(env=env)
            self._client = manager.client()
            self._client.start_channels(stdin=False, hb=False)
            _subscribe(self._client.iopub_channel.socket)
            self.generation += 1
            self._tasks = [
                asyncio.create_task(self._receive()),
                asyncio.create_task(self._hear()),
                asyncio.create_task(self._watch(manager)),
            ]
            answer = self._answer(await self._send(ops.Start(self._options())))
            result, _ = await asyncio.wait_for(answer, self.start_timeout)
        except (OSError, RuntimeError, TimeoutError, ops.OpError, EngineDied) as error:
            await self._teardown("the engine did not start")
            self._deaths += 1
            reason = str(error) or type(error).__name__
            raise EngineNotStarted(f"the engine did not start: {reason}") from error
        self.status = ops.EngineStatus(**result)

    def _options(self) -> ops.EngineOptions:
        return ops.EngineOptions(
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
            microbatch_tokens=self.microbatch_tokens,
            num_threads=self.num_threads,
            sampling_cache_mb=self.sampling_cache_mb,
            low_memory=self.low_memory,
        )

    def _make_manager(self) -> EngineKernelManager:
        runtime = Path(jupyter_runtime_dir())
        runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(runtime)
        connection_file = str(runtime / f"{self._name}.json")
        if not zmq.has("ipc"):
            # Encrypted and authenticated: other users of the machine can reach a TCP port.
            encryption = "required" if zmq.has("curve") else "disabled"
            return EngineKernelManager(
                parent=self, connection_file=connection_file, transport_encryption=encryption
            )
        prefix = str(runtime / self._name)
        if len(prefix.encode()) > _LONGEST_IPC_PREFIX:
            self._socket_dir = self._socket_dir or Path(tempfile.mkdtemp(prefix="tinker-"))
            prefix = str(self._socket_dir / "engine")
        manager = EngineKernelManager(
            parent=self, connection_file=connection_file, transport="ipc", ip=prefix
        )
        manager.session.key = self._key
        for number, name in enumerate(port_names, 1):
            setattr(manager, name, number)
            Path(f"{prefix}-{number}").unlink(missing_ok=True)
        return manager

    async def _teardown(self, reason: str, *, blame: bool = True) -> None:
        manager, client = self._manager, self._client
        self._manager = self._client = self.status = None
        # A person's cell is done before what was asked for behind it.
        blame = blame and self.cell_began is None
        self.cell_began = None
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        self._tasks = []
        during = blame  # the first that waits is what the engine was at
        for asked in list(self._pending.values()):
            if not asked.answer.done():
                asked.answer.set_exception(EngineDied(reason, during=during and asked.op.waits))
                during = during and not asked.op.waits
        self._pending.clear()
        if client is not None:
            client.stop_channels()
        if manager is not None and manager.has_kernel:
            await manager.shutdown_kernel(now=True)
        if self._ending and self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    # Messages

    async def _send(self, op: ops.Op) -> _Asked:
        if self._client is None:
            raise EngineDied("the engine is not running")
        content, buffers = ops.encode(op)
        session = self._client.session
        message = session.msg(ops.REQUEST, content)
        asked = _Asked(op, asyncio.get_running_loop().create_future())
        message_id = message["header"]["msg_id"]
        self._pending[message_id] = asked
        asked.answer.add_done_callback(lambda _: self._forget(message_id, asked))
        # By the socket's own asynchronous send: `session.send` goes round it to the plain
        # socket, and can swallow the one signal by which the receiver learns of a reply.
        frames = [*session.serialize(message), *buffers]
        try:
            await self._client.shell_channel.socket.send_multipart(frames)
        except zmq.ZMQError as error:  # it died, and its sockets are closed
            asked.answer.cancel()
            raise EngineDied("the engine died") from error
        return asked

    def _forget(self, message_id: str, asked: _Asked) -> None:
        self._pending.pop(message_id, None)
        if asked.task is not None:
            asked.task.close()
        if not asked.answer.cancelled():
            asked.answer.exception()  # who asked may be gone

    async def _answer(self, asked: _Asked) -> tuple[dict[str, Any], list[Any]]:
        content, buffers = await asked.answer
        self.busy_seconds += content["seconds"]
        if not isinstance(asked.op, ops.Start):
            self._deaths = 0
        if content.get("ok"):
            return content["result"], buffers
        raise ops.OpError(content["error"], content["category"])

    async def _receive(self) -> None:
        channel = self._client.shell_channel
        while True:
            message = await channel.get_msg(timeout=None)
            asked = self._pending.get(message["parent_header"].get("msg_id", ""))
            if asked is not None and not asked.answer.done():
                asked.answer.set_result((message["content"], message.get("buffers", [])))

    async def _hear(self) -> None:
        """How far the engine is with what it is at."""
        channel = self._client.iopub_channel
        while True:
            message = await channel.get_msg(timeout=None)
            asked = self._pending.get(message["parent_header"].get("msg_id", ""))
            told = progress.read(message["content"])
            if asked is None or asked.answer.done() or told is None:
                continue
            if asked.task is None:
                asked.task = self.progress.begin(told)
            asked.task.update(told)

    async def _watch(self, manager: EngineKernelManager) -> None:
        # A process sets no event when it dies.
        while await manager.is_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        if manager is not self._manager:
            return
        reason = "the engine died"
        if self.status is None:  # while it was started, by whom this is told
            await self._teardown(reason)
            return
        async with self._starting:  # the next one has the same address, which is cleared first
            if manager is not self._manager:
                return
            self.log.error("The Tinker engine died; it is started anew, and its runs are revived.")
            self._deaths += 1
            await self._teardown(reason)
        self.on_death(reason)


def _subscribe(iopub: zmq.Socket[Any]) -> None:
    """Of the kernel's messages to everybody, take those that are for us: there are two or more of
    others for each operation."""
    iopub.setsockopt(zmq.UNSUBSCRIBE, b"")
    iopub.setsockopt(zmq.SUBSCRIBE, progress.MESSAGE.encode())


def _sweep(runtime: Path) -> None:
    """Remove the connection files and sockets of servers that were killed."""
    for file in runtime.glob(f"{_PREFIX}*"):
        pid = file.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdecimal() and not _alive(int(pid)):
            file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True
