"""The engine as one of the Jupyter server's own kernels, for its kernel manager's list.

The server's routes start no process with it: it leads to the one that the supervisor has, and says
what of that a person may do: connect, interrupt a cell, restart, shut down. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

from jupyter_client import protocol_version  # type: ignore[attr-defined]
from jupyter_client.kernelspec import KernelSpec
from jupyter_server.services.kernels.kernelmanager import (
    ServerKernelManager,
    emit_kernel_action_event,
)

from .supervisor import EngineSupervisor

NAME = "tinker-engine"
_NEVER = 10**9  # seconds without activity, until it is culled


class EngineKernel(ServerKernelManager):
    """What `api/kernels` knows of the engine, from its start until a person shuts it down.

    `release` ends the engine; it is given a reason and whether that must be at once.
    """

    def __init__(
        self,
        supervisor: EngineSupervisor,
        release: Callable[[str, bool], Awaitable[None]],
        **options: Any,
    ) -> None:
        super().__init__(owns_kernel=False, kernel_name=NAME, **options)
        self._supervisor = supervisor
        self._release = release
        self._callbacks: dict[str, list[Callable[[], object]]] = {"restart": [], "dead": []}
        self._last_activity = datetime.now(UTC)
        self.retired = False
        self.ready.set_result(None)
        # What the server would ask the kernel before it lets anybody in, behind a long operation.
        self._kernel_info_future: Future[dict[str, str]] = Future()
        self._kernel_info_future.set_result({"protocol_version": protocol_version})

    def follow(self) -> bool:
        """Lead to the engine as it runs now; whether its address is the same as before."""
        manager = self._supervisor.manager
        assert manager is not None
        before = [self.ip, *self.ports]
        for name in ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"):
            setattr(self, name, 0)
        self.load_connection_info(manager.get_connection_info())
        self.connection_file = manager.connection_file
        return before == [self.ip, *self.ports]

    # What the server's lists show

    @property
    def kernel_spec(self) -> KernelSpec:
        metadata = {"cull_idle_timeout": _NEVER}
        return KernelSpec(display_name="Tinker engine", language="python", metadata=metadata)

    @property
    def execution_state(self) -> str:
        supervisor = self._supervisor
        if not supervisor.running:
            return "starting" if supervisor.starting else "dead"
        return "busy" if supervisor.operating or supervisor.cell_began is not None else "idle"

    @execution_state.setter
    def execution_state(self, state: str) -> None:
        pass  # it is what the engine does

    @property
    def last_activity(self) -> datetime:
        if self.execution_state == "busy":
            self._last_activity = datetime.now(UTC)
        return self._last_activity

    @last_activity.setter
    def last_activity(self, time: datetime) -> None:
        self._last_activity = time

    async def is_alive(self) -> bool:  # type: ignore[override]
        return self._supervisor.running

    # What people do

    @emit_kernel_action_event(success_msg="Kernel {kernel_id} was interrupted.")
    async def interrupt_kernel(self) -> None:
        """Interrupt the cell that runs; what clients asked for goes on."""
        manager = self._supervisor.manager
        if manager is not None:
            await manager.interrupt_kernel()

    @emit_kernel_action_event(success_msg="Kernel {kernel_id} was shutdown.")
    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """End the engine, until something is asked of it again; that one is another kernel."""
        self.retired = True
        await self._release("it was shut down as a kernel", now)

    @emit_kernel_action_event(success_msg="Kernel {kernel_id} was restarted.")
    async def restart_kernel(self, now: bool = False, **_: Any) -> None:
        await self._release("it was restarted as a kernel", now)
        await self._supervisor.ensure_started()

    def add_restart_callback(self, callback: Any, event: str = "restart") -> None:
        self._callbacks[event].append(callback)

    def remove_restart_callback(self, callback: Any, event: str = "restart") -> None:
        if callback in self._callbacks[event]:
            self._callbacks[event].remove(callback)

    def tell(self, event: str) -> None:
        """Tell who is connected of a "restart", or that the kernel is "dead"."""
        for callback in list(self._callbacks[event]):
            callback()
