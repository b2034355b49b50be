"""Starts, watches and stops the engine kernel, and passes operations on to it.

Knows nothing of runs' order, futures or the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from traitlets import Bool, Enum, Float, Integer, Unicode
from traitlets.config import LoggingConfigurable

from ..wire import ops
from ..wire.progress import Progress
from .engine_client import Asked, EngineClient, EngineDied
from .engine_process import EngineAddress, EngineKernelManager, environment
from .progress import Tasks

_LONGEST_BACK_OFF = 30.0  # seconds


class EngineNotStarted(EngineDied):
    """A new engine process ended, or said nothing, before it could do anything.

    `refused`: it said itself why it cannot work, and the next one would say the same.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


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
        help="""Number format of the base model: "auto" is bfloat16 on GPUs and processors that
        multiply it faster, and float32 elsewhere. Adapters and optimizer states are always
        float32.""",
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
        split; lower it when the device runs out of memory. 0 is 512 on the CPU (1024 in bfloat16),
        and on a GPU 2048 to 16384 by the memory that it has (4096 for models that are padded).""",
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
        self._address = EngineAddress()
        self._manager: EngineKernelManager | None = None
        self._client: EngineClient | None = None
        self._watching: asyncio.Task[None] | None = None
        self._starting, self._tearing_down = asyncio.Lock(), asyncio.Lock()
        self._starts: set[asyncio.Task[int | None]] = (
            set()
        )  # each of somebody who waits for an engine
        self._pause: asyncio.Task[None] | None = None  # before one is started
        self._deaths = 0  # of engines, one after another, that did nothing of what was asked
        self._ending = False
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
        return self._client is not None and self._client.operating

    def holds(self, generation: int) -> bool:
        """Whether the engine lives that had this generation."""
        return self.running and self.generation == generation

    async def ensure_started(self) -> int:
        """Start the engine if there is none. Returns its generation. Raises `EngineNotStarted`.

        One whose predecessors died without having done anything is started after a while only.
        """
        if self.running and not self.starting:
            return self.generation
        # A start goes on, whether or not who asked for it gives up: others may wait for it.
        start = asyncio.get_running_loop().create_task(self._start_if_needed())
        self._starts.add(start)
        start.add_done_callback(self._forget_start)
        generation = await asyncio.shield(start)
        if generation is not None:
            return generation
        # What is asked now is done by the next server, and nobody is told otherwise.
        never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        return await never

    async def request(
        self, op: ops.Op, *, generation: int | None = None, again: bool = False
    ) -> tuple[dict[str, Any], list[Any]]:
        """Have the engine do `op`; returns result and buffers.

        Raises `OpError` for what the engine refused and `EngineDied` if it ended meanwhile, or is
        not the one of that generation. Operations are done one after another in the order of the
        calls. `again`: it only brings back what an engine before had already, and an engine that
        has done no more than that before it dies has done nothing.
        """
        return await (await self.begin(op, generation=generation, again=again))

    async def begin(
        self, op: ops.Op, *, generation: int | None = None, again: bool = False
    ) -> Awaitable[tuple[dict[str, Any], list[Any]]]:
        """Put `op` in the engine's line; what is returned waits for its result, as `request`."""
        if generation is None:
            await self.ensure_started()
        elif not self.holds(generation):
            raise EngineDied("the engine that held it is gone")
        if self._client is None:
            raise EngineDied("the engine is not running")
        return self._answer(await self._client.send(op), again=again)

    async def _answer(
        self, asked: Asked, *, again: bool = False
    ) -> tuple[dict[str, Any], list[Any]]:
        content, buffers = await asked.answer
        self.busy_seconds += content["seconds"]
        if not again and not isinstance(asked.op, ops.Start):
            self._deaths = 0
        if content.get("ok"):
            return content["result"], buffers
        raise ops.OpError(content["error"], content["category"])

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
        if self._pause is not None:
            self._pause.cancel()
        if self.starting and self._manager is not None and self._manager.provisioner is not None:
            # Its start need not be waited for. The rest is the start's, which now fails: a manager
            # is not asked to shut down by two at once.
            await self._manager.provisioner.kill()
        async with self._starting:
            await self._teardown("the engine was shut down")

    # Starting and stopping

    async def _start_if_needed(self) -> int | None:
        """Returns the engine's generation; None if there will be no engine any more."""
        async with self._starting:
            if self.running:
                return self.generation
            if self._deaths > 1 and not self._ending:
                seconds = min(_LONGEST_BACK_OFF, 2.0 ** (self._deaths - 2) / 2)
                self._pause = asyncio.get_running_loop().create_task(asyncio.sleep(seconds))
                await asyncio.wait([self._pause])
            if self._ending:
                return None
            try:
                await self._start()
            except EngineNotStarted:
                if self._ending:
                    return None
                raise
            return self.generation

    def _forget_start(self, start: asyncio.Task[int | None]) -> None:
        self._starts.discard(start)
        if not start.cancelled():
            start.exception()  # who asked may be gone

    async def _start(self) -> None:
        with self.progress.begin(Progress("starting the engine")):
            await self._start_kernel()
        assert self.status is not None
        self.log.info("Tinker engine started: %s", self.status.reason)
        self.on_start(self.status)

    async def _start_kernel(self) -> None:
        manager = self._manager = self._address.manager(self)
        try:
            await manager.start_kernel(env=environment(low_memory=self.low_memory))
            if self._ending:
                raise EngineDied("the server ends")
            self._client = EngineClient(manager.client(), self.progress)
            self._client.start()
            self.generation += 1
            self._watching = asyncio.create_task(self._watch(manager))
            answer = self._answer(await self._client.send(ops.Start(self._options())))
            result, _ = await asyncio.wait_for(answer, self.start_timeout)
        except (OSError, RuntimeError, TimeoutError, ops.OpError, EngineDied) as error:
            await self._teardown("the engine did not start")
            self._deaths += 1
            reason = str(error) or type(error).__name__
            raise EngineNotStarted(
                f"the engine did not start: {reason}", refused=isinstance(error, ops.OpError)
            ) from error
        except BaseException:  # the loop ends; the process must not outlive it
            await self._teardown("the engine did not start")
            raise
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

    async def _teardown(self, reason: str, *, blame: bool = True) -> None:
        async with self._tearing_down:  # whoever comes second waits until the address is free
            manager, client = self._manager, self._client
            self._manager = self._client = self.status = None
            # A person's cell is done before what was asked for behind it.
            blame = blame and self.cell_began is None
            self.cell_began = None
            if self._watching is not None and self._watching is not asyncio.current_task():
                self._watching.cancel()
            self._watching = None
            if client is not None:
                client.close(reason, blame=blame)
            if manager is not None and manager.has_kernel:
                await manager.shutdown_kernel(now=True)
            if self._ending:
                self._address.remove()
