"""The newest events, encoded once for all watchers. Knows nothing of the database."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Encoded:
    """An event as it is sent."""

    id: int
    run_id: str | None
    body: bytes

    def concerns(self, runs: Set[str] | None) -> bool:
        """Whether a watcher of these runs is told. What is of no run is told to everybody."""
        return runs is None or self.run_id is None or self.run_id in runs


class Ring:
    """Every event with an id above `floor`, up to `newest`.

    Bounded by number and by bytes: the oldest make room, and `floor` rises.
    """

    def __init__(self, newest: int, *, max_events: int, max_bytes: int) -> None:
        self.floor = newest
        self.newest = newest
        self.size = 0  # bytes
        self._events: list[Encoded] = []
        self._max_events = max_events
        self._max_bytes = max_bytes

    def extend(self, events: list[Encoded]) -> None:
        """Add events in the order of their ids. What comes twice is left out; where one is
        missing, the ring begins anew, since it can no longer answer for what lies before."""
        for event in events:
            if event.id <= self.newest:
                continue
            if event.id > self.newest + 1:
                self._events.clear()
                self.size = 0
                self.floor = event.id - 1
            self._events.append(event)
            self.size += len(event.body)
            self.newest = event.id
        self._trim()

    def _trim(self) -> None:
        count = max(0, len(self._events) - self._max_events)
        size = self.size - sum(len(event.body) for event in self._events[:count])
        while size > self._max_bytes:
            size -= len(self._events[count].body)
            count += 1
        del self._events[:count]
        self.size = size
        self.floor += count

    def after(self, cursor: int, runs: Set[str] | None, max_bytes: int) -> tuple[list[bytes], int]:
        """Bodies of events above `cursor`, which is not below `floor`, and the id of the last one
        that was looked at. Stops at the first event that makes it `max_bytes` or more."""
        bodies: list[bytes] = []
        size = 0
        for event in self._events[cursor - self.floor :]:
            cursor = event.id
            if event.concerns(runs):
                bodies.append(event.body)
                size += len(event.body)
                if size >= max_bytes:
                    break
        return bodies, cursor
