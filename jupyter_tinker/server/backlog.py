"""Writes to the database in the order of the calls, many in one transaction, until they succeed.

For what the server has already done: there is no going back, so a full disk only delays it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from .database import Database

_log = logging.getLogger(__name__)

_AT_ONCE = 256
_RETRY_SECONDS = 1.0
_LONGEST_PAUSE = 30.0
_PATIENCE = 600.0  # seconds, with what somebody waits for

T = TypeVar("T")
Work = Callable[[Session], object]


async def patiently(do: Callable[[], Awaitable[T]]) -> T:
    """Do what writes to the database and is waited for, and may be done twice: while the disk is
    full again and again, for ten minutes."""
    give_up_at, pause = time.monotonic() + _PATIENCE, _RETRY_SECONDS
    while True:
        try:
            return await do()
        except OperationalError as error:
            if time.monotonic() >= give_up_at:
                raise
            _log.error("The database cannot be used, it is tried again: %s", error.orig)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


@dataclass(eq=False)
class _Entry:
    work: Work
    tried: asyncio.Future[bool] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    stored: asyncio.Future[bool] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Backlog:
    """What is still to be written."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._waiting: deque[_Entry] = deque()
        self._worker: asyncio.Task[None] | None = None

    def put(self, work: Work) -> asyncio.Future[bool]:
        """Have `work` done in a transaction, after everything put before it.

        What is returned is set once that was tried, with whether it succeeded: where it did not,
        it is tried again. Work that fails by its own fault is dropped.
        """
        entry = _Entry(work)
        self._waiting.append(entry)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._write())
        return entry.tried

    async def flushed(self) -> None:
        """Wait until all that was put so far is written, however long the disk is full."""
        if self._waiting:
            await asyncio.shield(self._waiting[-1].stored)

    async def flush(self, seconds: float) -> None:
        """`flushed`, for so long at most."""
        if self._waiting:
            await asyncio.wait([self._waiting[-1].stored], timeout=seconds)

    async def close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _write(self) -> None:
        while self._waiting:
            entries = [self._waiting[i] for i in range(min(_AT_ONCE, len(self._waiting)))]
            try:
                await self._db.call(partial(_do, entries))
            except OperationalError as error:
                _log.error("The database cannot be written, it is tried again: %s", error.orig)
                self._mark(entries, stored=False)
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:
                await self._write_singly(entries)
            else:
                for _ in entries:
                    self._waiting.popleft()
                self._mark(entries, stored=True)

    async def _write_singly(self, entries: list[_Entry]) -> None:
        """One of these fails by its own fault; the others are not to suffer for it."""
        for entry in entries:
            try:
                await self._db.call(entry.work)
            except OperationalError:
                return  # the caller comes back to it
            except Exception:
                _log.exception("Something could not be written to the database, and is lost.")
                self._waiting.popleft()
                self._mark([entry], stored=False)
                entry.stored.set_result(False)
            else:
                self._waiting.popleft()
                self._mark([entry], stored=True)

    @staticmethod
    def _mark(entries: list[_Entry], *, stored: bool) -> None:
        for entry in entries:
            if not entry.tried.done():
                entry.tried.set_result(stored)
            if stored and not entry.stored.done():
                entry.stored.set_result(True)


def _do(entries: list[_Entry], db: Session) -> None:
    for entry in entries:
        entry.work(db)
        db.flush()
