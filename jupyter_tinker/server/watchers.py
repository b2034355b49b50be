"""Whoever follows the events: a place in their sequence, and no copy of any."""

from __future__ import annotations

import asyncio
from collections.abc import Set
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from .events import Events


class TooManyWatchers(RuntimeError):
    """No further watcher is taken; the message says why."""


class Watcher:
    """One watcher's place: it has been given everything up to the id `cursor`.

    However far behind it is, it costs no memory: it is given what is next when it asks.
    """

    def __init__(self, events: Events, cursor: int, runs: Set[str] | None) -> None:
        self.cursor = cursor
        self.runs = runs
        self.told: dict[int, int] = {}  # of the work that goes on: the version of each task
        self.closed = asyncio.Event()
        self.left = asyncio.Event()
        self._events = events
        self._news = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._events.leave(self)
        self.left.set()

    def wake(self) -> None:
        """There may be something new."""
        self._news.set()

    def close(self) -> None:
        """End it: whoever waits for what is next hears that nothing is."""
        self.closed.set()
        self._news.set()

    async def next(self, seconds: float) -> list[bytes] | None:
        """The next events, encoded; empty if none came within `seconds`, None once closed."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not self.closed.is_set():
            self._news.clear()
            if bodies := await self._events.read(self):
                return bodies
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                return []
        return None
