"""What happens to runs and to the engine: written with what it tells of, and told to watchers.

An event is recorded in the transaction of the change it tells of. When that is committed, the event
is encoded, once, and goes to the event loop. There is no other step that could be forgotten, and
watchers see events in the order of commits. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from ..wire.events import Event, Kind, encode
from . import event_history
from .database import Database, after_commit, insert_row
from .event_ring import Encoded, Ring
from .progress import Tasks
from .schema import EventRow, StepRow
from .watchers import TooManyWatchers, Watcher

# What is committed within this time is told together: each telling wakes every watcher.
_GATHER_SECONDS = 0.02
# Pages of history that are read and encoded at a time, all watchers together.
_READERS = 2
_CLOSING_SECONDS = 2.0


@dataclass(frozen=True)
class EventLimits:
    """How much is kept for watchers, and of them."""

    max_watchers: int = 200
    stall_seconds: float = 30.0  # after which a watcher that takes nothing is dropped
    ring_events: int = 20_000  # of the newest events, kept in memory for all watchers together
    ring_bytes: int = 8 * 2**20
    chunk_bytes: int = 2**16  # about so much is sent at once
    page: int = 256  # older events, read from the database at once


class Events:
    """The events of one server: recorded, kept, told.

    `bus` is told of every event but steps, on the event loop.
    """

    def __init__(
        self, database: Database, limits: EventLimits | None = None, progress: Tasks | None = None
    ) -> None:
        self.limits = limits or EventLimits()
        self.progress = progress or Tasks()  # is told beside the events
        self.progress.on_change = self._wake
        self.bus: Callable[[Event], None] | None = None
        self._db = database
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ring: Ring | None = None
        self._fresh: deque[tuple[Event, Encoded]] = deque()  # committed, and not yet told
        self._telling = False
        self._told_at = 0.0
        self._watchers: set[Watcher] = set()
        self._readers = asyncio.Semaphore(_READERS)
        self._closed = False

    def start(self) -> None:
        """Begin to tell. Called on the event loop."""
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Let go of all watchers; what is recorded from now on is kept and not told."""
        self._closed = True
        self.progress.close()
        watchers = list(self._watchers)
        for watcher in watchers:
            watcher.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                for watcher in watchers:
                    await watcher.left.wait()

    # Recording: within a transaction, on the database's thread

    def record(
        self,
        db: Session,
        run_id: str | None,
        kind: Kind,
        *,
        actor: str | None = None,
        step: int | None = None,
        **data: Any,
    ) -> Event:
        """Add an event to the transaction of `db`. Watchers are told once it is committed.

        `step` is the run's optimizer step at that time; for `rewound` also the datum of that name.
        """
        if kind == "rewound":
            data["step"] = step
        number = event_history.newest(db) + 1
        event = Event(number, run_id, time.time(), kind, actor, step, data)
        insert_row(db, EventRow(**event.to_json()))
        self._tell_later(db, event)
        return event

    def record_step(self, db: Session, row: StepRow) -> Event:
        """Add a step, whose `id` is set here, to the transaction of `db`; else as `record`."""
        row.id = event_history.newest(db) + 1
        insert_row(db, row)
        event = event_history.of_step(row)
        self._tell_later(db, event)
        return event

    async def emit(
        self,
        run_id: str | None,
        kind: Kind,
        *,
        actor: str | None = None,
        step: int | None = None,
        **data: Any,
    ) -> Event:
        """Record an event in a transaction of its own."""
        return await self._db.call(
            lambda db: self.record(db, run_id, kind, actor=actor, step=step, **data)
        )

    def _tell_later(self, db: Session, event: Event) -> None:
        recorded: list[Event] | None = db.info.get(self)
        if recorded is None:
            recorded = db.info[self] = []
            after_commit(db, lambda: self._committed(recorded))
        recorded.append(event)

    def _committed(self, events: list[Event]) -> None:
        if self._loop is None or self._closed:
            return
        self._fresh.extend((e, Encoded(e.id, e.run_id, encode(e))) for e in events)
        # `_tell` clears the mark before it looks at what is fresh, so nothing is left lying.
        if not self._telling:
            self._telling = True
            with suppress(RuntimeError):  # the loop is closed: nobody watches any more
                self._loop.call_soon_threadsafe(self._tell_soon)

    # Telling: on the event loop

    def _tell_soon(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(max(loop.time(), self._told_at + _GATHER_SECONDS), self._tell)

    def _tell(self) -> None:
        self._told_at = asyncio.get_running_loop().time()
        self._telling = False
        fresh = [self._fresh.popleft() for _ in range(len(self._fresh))]
        if not fresh:
            return
        if self._ring is None:
            self._ring = self._new_ring(fresh[0][0].id - 1)
        self._ring.extend([encoded for _, encoded in fresh])
        self._wake()
        for event, _ in fresh:
            if event.kind != "step" and self.bus is not None:
                self.bus(event)

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.wake()

    def _new_ring(self, newest: int) -> Ring:
        limits = self.limits
        return Ring(newest, max_events=limits.ring_events, max_bytes=limits.ring_bytes)

    async def _opened(self) -> Ring:
        """The ring, with all that is committed: what a client has read of it elsewhere it must not
        be given again."""
        self._tell()
        if self._ring is None:
            newest = await self._db.call(event_history.newest)
            self._ring = self._ring or self._new_ring(newest)
        return self._ring

    # Reading

    async def history(
        self, after: int, runs: Set[str] | None = None, limit: int | None = None
    ) -> list[Encoded]:
        """The first `limit` events above the id `after`, of these runs and of none, or of all.

        Only what watchers may have been told already; oldest first.
        """
        ring = await self._opened()
        return await self._page(after, ring.newest, runs, limit or self.limits.page)

    async def _page(
        self, after: int, upto: int, runs: Set[str] | None, limit: int
    ) -> list[Encoded]:
        # Not on the database's thread: readers need not wait for writers, nor writers for them.
        def work(db: Session) -> list[Encoded]:
            return event_history.page(db, after, upto, runs, limit)

        async with self._readers:
            return await asyncio.to_thread(self._db.run, work)

    async def watch(self, after: int | None = None, runs: Set[str] | None = None) -> Watcher:
        """A watcher of what comes behind the id `after` (None: from now on), of these runs and of
        no run, or of all. To be used as a context. Raises `TooManyWatchers`."""
        ring = None if self._closed else await self._opened()
        if ring is None or self._closed:
            raise TooManyWatchers("The server is about to stop.")
        if len(self._watchers) >= self.limits.max_watchers:
            raise TooManyWatchers(
                f"{len(self._watchers)} watchers follow the events already; close one of them, or "
                "raise TinkerExtension.max_watchers."
            )
        # An id that was never told is of a database that is no more.
        cursor = ring.newest if after is None else min(after, ring.newest)
        watcher = Watcher(self, cursor, runs)
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    async def read(self, watcher: Watcher) -> list[bytes]:
        """What comes next for a watcher, whose cursor is moved; empty if there is nothing now."""
        return await self._read_events(watcher) + self.progress.news(watcher.told, watcher.runs)

    async def _read_events(self, watcher: Watcher) -> list[bytes]:
        assert self._ring is not None, "watch() opened it"
        ring, limits = self._ring, self.limits
        while watcher.cursor < ring.newest:
            if watcher.cursor >= ring.floor:
                bodies, cursor = ring.after(watcher.cursor, watcher.runs, limits.chunk_bytes)
            else:
                upto = ring.newest
                found = await self._page(watcher.cursor, upto, watcher.runs, limits.page)
                bodies = [event.body for event in found]
                cursor = found[-1].id if len(found) == limits.page else upto
            watcher.cursor = cursor
            if bodies:
                return bodies
        return []
