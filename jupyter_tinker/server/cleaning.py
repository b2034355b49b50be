"""Drops what is kept of runs beside their lives: nothing goes that is being used just now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .registry import Registry
from .retention import DROPPED, Retention, Size
from .runs import Run
from .session_index import SessionIndex
from .supervisor import EngineSupervisor

_PATIENCE = 60.0  # seconds, with what a run is at


class Cleaning:
    """What retention drops, in a server whose runs live."""

    def __init__(
        self,
        *,
        retention: Retention,
        registry: Registry,
        sessions: SessionIndex,
        supervisor: EngineSupervisor,
    ) -> None:
        self._retention = retention
        self._registry = registry
        self._sessions = sessions
        self._supervisor = supervisor

    async def keep_within(self, budget: int) -> None:
        """Drop the oldest of what histories have beyond so many bytes."""
        await self._retention.keep_within(budget, self._held)

    @asynccontextmanager
    async def _held(self, run_id: str) -> AsyncIterator[bool]:
        """Keep a run as it is, unless it has too much to do; whether that is so."""
        run = self._registry.known(run_id)
        if run is None:
            yield True
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                await run.lock.acquire()
        except TimeoutError:
            yield False
            return
        try:
            yield True
        finally:
            run.lock.release()

    async def drop_unused(self, before: float, *, by: str, dry_run: bool = False) -> list[Size]:
        """Drop the histories of the runs that nobody has asked anything of since then, which end
        with it, except of those that the engine holds or whose client lives; returns what went."""
        gone = []
        for size in await self._retention.unused_since(before):
            run = await self._registry.get(size.run_id)
            if self._lives(run):
                continue
            async with run.lock:  # which nobody has
                if not dry_run:
                    if not await self._retention.drop_unused(run.id, before, by=by):
                        continue
                    run.end(DROPPED)
                gone.append(size)
        return gone

    def _lives(self, run: Run) -> bool:
        if run.lock.locked():
            return True
        held = self._supervisor.holds(run.generation) or self._sessions.alive(run.row.session_id)
        return held and run.ended is None
