"""What outlives the engine, and the server: what was pending goes on, and runs come back.

Knows when; how a run is made again is `revival`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from ..wire import ops
from ..wire.events import Kind
from ..wire.sampling import SnapshotSampler
from .custom_losses import CustomLosses
from .engine_client import EngineDied
from .events import Events
from .futures import Futures, Request
from .history import HistoryGone
from .journal import Journal
from .registry import Registry
from .revival import Revival
from .runs import Run
from .samplers import Target
from .snapshots import Snapshots
from .supervisor import EngineSupervisor

_FAREWELL_SECONDS = 10.0  # for the last snapshots


class Lives:
    """Follows the lives of the engine and of this server."""

    def __init__(
        self,
        *,
        supervisor: EngineSupervisor,
        journal: Journal,
        futures: Futures,
        events: Events,
        registry: Registry,
        revival: Revival,
        snapshots: Snapshots,
        custom_losses: CustomLosses,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        log: Any,
    ) -> None:
        self._supervisor = supervisor
        self._journal = journal
        self._futures = futures
        self._events = events
        self._registry = registry
        self._revival = revival
        self._snapshots = snapshots
        self._custom_losses = custom_losses
        self._spawn = spawn
        self._log = log
        supervisor.on_start = self._engine_started
        supervisor.on_death = self._engine_died

    # Of the server

    async def resume(self) -> None:
        """Go on with what an earlier life of the server accepted and had not done."""
        try:
            await self._registry.resume()
            for session_id in await self._journal.owners_of_pending(["create_custom_loss"]):
                for row, payload in await self._journal.pending(session_id):
                    if row.server == self._journal.server:
                        continue
                    request = Request(row.id, row.run_id, row.seq_id, row.kind, payload)
                    self._futures.open(request)
                    self._spawn(self._custom_losses.create(request))
        except Exception:
            self._log.exception("What was pending cannot be gone on with.")
        finally:
            self._futures.resumed.set()

    async def farewell(self) -> None:
        """Have snapshots of all runs in the engine, so that the next server is quick to go on."""
        with suppress(Exception):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await asyncio.gather(*map(self._keep, self._registry), return_exceptions=True)

    async def _keep(self, run: Run) -> None:
        async with run.lock:
            if self._supervisor.holds(run.generation):
                await self._snapshots.keep(run)

    # Of the engine

    async def begin(self) -> None:
        """Have an engine before it is asked for anything."""
        try:
            await self._supervisor.ensure_started()
        except EngineDied as error:
            self._log.error("%s. The first request tries again.", error)

    async def let_go(self, reason: str, now: bool = False) -> None:
        """End the engine, until something is asked of it again; unless it must be `now`, with
        snapshots, so that its runs are quick to come back. What it was asked for is done again."""
        if not now:
            await self.farewell()
        if await self._supervisor.release(reason):
            await self._tell("engine_stopped", reason=reason)

    def _engine_started(self, status: ops.EngineStatus) -> None:
        self._spawn(self._tell("engine_started", **asdict(status)))

    def _engine_died(self, reason: str) -> None:
        self._spawn(self._tell("engine_died", reason=reason))
        for run in self._registry:
            if run.generation == self._supervisor.generation and run.ended is None:
                self._spawn(self._revive(run))

    async def _tell(self, kind: Kind, **data: Any) -> None:
        await self._events.emit(None, kind, **data)

    async def _revive(self, run: Run) -> None:
        async with run.lock:
            try:
                await self._revival.hold(run)
            except (EngineDied, ops.OpError, HistoryGone) as error:
                self._log.error("Run %s is not revived yet: %s", run.id, error)

    async def unload(self, run: Run) -> bool:
        """Free a run's memory in the engine; a snapshot of it is kept. Its lock is held.

        Whether the engine had it.
        """
        if not self._supervisor.holds(run.generation):
            return False
        with suppress(EngineDied, ops.OpError):
            await self._snapshots.keep(run)
            await self._supervisor.request(ops.UnloadRun(run.id), generation=run.generation)
        run.generation = 0
        return True


class Copier:
    """Makes copies of runs' weights once more, as they were, for sampling sessions."""

    def __init__(self, supervisor: EngineSupervisor, registry: Registry, revival: Revival) -> None:
        self._supervisor = supervisor
        self._registry = registry
        self._revival = revival

    async def revive(self, target: Target, position: int) -> None:
        """Have the engine make `target` of what its run was at a position.

        Raises `EngineDied`, `OpError` and `HistoryGone`.
        """
        assert target.run is not None
        run = await self._registry.get(target.run)
        async with self._revival.beside(run, position) as (name, generation):
            copy = SnapshotSampler(target.name, name)
            await self._supervisor.request(copy, generation=generation)
