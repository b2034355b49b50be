"""Lets people attach to the engine: puts it on the Jupyter server's list of kernels while it runs.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jupyter_server.gateway.managers import GatewayMappingKernelManager
from jupyter_server.prometheus.metrics import KERNEL_CURRENTLY_RUNNING_TOTAL
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

from ..wire import ops
from .engine_client import EngineDied
from .engine_kernel import NAME, EngineKernel
from .supervisor import EngineSupervisor


@dataclass(frozen=True)
class Attachable:
    """How to reach the engine; what is None is not there."""

    kernel_id: str | None  # as of `api/kernels`
    connection_file: str | None  # for `jupyter console --existing`
    kernel_name: str = NAME
    refusal: str | None = None  # why it is not on the list of kernels


class Attach:
    """The engine among the kernels of a server.

    `release` ends the engine; it is given a reason and whether that must be at once.
    """

    def __init__(
        self,
        kernels: Any,
        supervisor: EngineSupervisor,
        release: Callable[[str, bool], Awaitable[None]],
        log: Any,
    ) -> None:
        self._kernels = kernels
        self._supervisor = supervisor
        self._release = release
        self._log = log
        self._kernel: EngineKernel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Task[None] | None = None
        self._started, self._died = supervisor.on_start, supervisor.on_death
        supervisor.on_start, supervisor.on_death = self._on_start, self._on_death

    @property
    def refusal(self) -> str | None:
        """Why the engine cannot be on the server's list of kernels; None: it can."""
        kernels = self._kernels
        if isinstance(kernels, GatewayMappingKernelManager):
            return "This server's kernels run behind a gateway, and the engine runs beside it."
        if not isinstance(kernels, AsyncMappingKernelManager):
            return (
                f"This server's kernels are listed by {type(kernels).__name__}, which takes no "
                "kernel that it has not started."
            )
        specs = kernels.kernel_spec_manager
        allowed = () if specs is None else specs.allowed_kernelspecs
        if allowed and NAME not in allowed:
            return (
                f"This server allows only the kernels {', '.join(sorted(allowed))}; to attach to "
                f"the engine, add {NAME!r} to KernelSpecManager.allowed_kernelspecs."
            )
        return None

    def look(self) -> Attachable:
        """How to reach the engine as it is now; nothing is started."""
        manager, refusal = self._supervisor.manager, self.refusal
        if manager is None:
            return Attachable(None, None, refusal=refusal)
        kernel_id = self._kernel.kernel_id if self._kernel is not None and self._listed else None
        return Attachable(kernel_id, manager.connection_file, refusal=refusal)

    async def start(self) -> Attachable:
        """How to reach the engine, which is started if need be. Raises `EngineDied`."""
        await self._supervisor.ensure_started()
        self._show()
        return self.look()

    async def close(self) -> None:
        """Take the engine off the list, and listen no more."""
        self._hide()
        tasks = [*self._tasks, *([self._listening] if self._listening else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # The engine's life

    def _on_start(self, status: ops.EngineStatus) -> None:
        self._started(status)
        try:
            self._follow()
        except Exception:  # it can compute all the same
            self._log.exception("The engine cannot be put on the list of kernels.")

    def _on_death(self, reason: str) -> None:
        self._died(reason)
        kernel = self._kernel
        if kernel is None:
            return
        if self._kernels._kernel_connections.get(kernel.kernel_id):
            # As the server does with its own kernels that somebody looks at.
            self._spawn(self._again())
        else:
            self._hide()

    async def _again(self) -> None:
        with suppress(EngineDied):
            await self._supervisor.ensure_started()

    def _follow(self) -> None:
        """A new engine runs."""
        manager = self._supervisor.manager
        if manager is None:
            return
        if self._listening is not None:
            self._listening.cancel()
        self._listening = asyncio.get_running_loop().create_task(self._listen(manager))
        kernel = self._kernel
        if kernel is not None and self._listed:
            if kernel.follow():
                kernel.tell("restart")
            else:
                kernel.tell("dead")  # who is connected would wait at an address of the past
                self._hide()
        self._show()

    # The list

    @property
    def _listed(self) -> bool:
        kernel = self._kernel
        return kernel is not None and not kernel.retired and kernel.kernel_id in self._kernels

    def _show(self) -> None:
        if self._listed or self._supervisor.manager is None or self.refusal is not None:
            return
        kernels = self._kernels
        kernel = EngineKernel(
            self._supervisor,
            self._release,
            parent=kernels,
            log=self._log,
            context=kernels.context,
            kernel_id=kernels.new_kernel_id(),
        )
        kernel.follow()
        self._kernel = kernel
        kernels._kernels[kernel.kernel_id] = kernel
        kernels._kernel_connections[kernel.kernel_id] = 0
        kernels._kernel_ports[kernel.kernel_id] = kernel.ports
        KERNEL_CURRENTLY_RUNNING_TOTAL.labels(type=NAME).inc()

    def _hide(self) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None and kernel.kernel_id in self._kernels:
            with suppress(Exception):
                self._kernels.stop_buffering(kernel.kernel_id)
            self._kernels.remove_kernel(kernel.kernel_id)
            self._kernels._kernel_connections.pop(kernel.kernel_id, None)
            self._kernels._kernel_ports.pop(kernel.kernel_id, None)
            KERNEL_CURRENTLY_RUNNING_TOTAL.labels(type=NAME).dec()

    # Cells

    async def _listen(self, manager: Any) -> None:
        """Learn when people's cells begin and end; of all that is published, only that comes."""
        socket = manager.connect_iopub()
        session = manager.session.clone()
        try:
            socket.unsubscribe(b"")
            socket.subscribe(ops.CELL_TOPIC)
            while True:
                _, frames = session.feed_identities(await socket.recv_multipart())
                message = session.deserialize(frames)
                if message["msg_type"] == ops.CELL and manager is self._supervisor.manager:
                    runs = message["content"]["runs"]
                    self._supervisor.cell_began = time.monotonic() if runs else None
        except asyncio.CancelledError:
            raise
        except Exception:
            self._log.exception("Nothing is known any more of cells on the engine's kernel.")
        finally:
            socket.close(0)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
