"""Which samplers the engine holds, when each was used last, and which is to make room."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from .samplers import Target


@dataclass
class _Entry:
    target: Target
    used: float = field(default_factory=time.monotonic)


class LoadedSamplers:
    """The samplers of one engine; at most `largest` of those that can be loaded again."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._entries: dict[str, _Entry] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def add(self, target: Target) -> None:
        self._entries[target.name] = _Entry(target)

    def use(self, name: str) -> None:
        if (entry := self._entries.get(name)) is not None:
            entry.used = time.monotonic()

    def remove(self, name: str) -> bool:
        """Whether it was there."""
        return self._entries.pop(name, None) is not None

    def clear(self) -> None:
        self._entries.clear()

    def copies(self, run_id: str) -> list[str]:
        """The copies of a run's weights, least recently used first."""
        found = [entry for entry in self._entries.values() if entry.target.run == run_id]
        return [entry.target.name for entry in sorted(found, key=lambda entry: entry.used)]

    @property
    def full(self) -> bool:
        return len(self._replaceable()) >= self._largest

    def to_replace(self, busy: Collection[str], wanted: Callable[[str], bool]) -> str | None:
        """The name of the sampler that should make room: not a busy one, rather not one that
        somebody waits for, and of those the least recently used."""
        idle = [entry for entry in self._replaceable() if entry.target.name not in busy]
        if not idle:
            return None
        return min(idle, key=lambda e: (wanted(e.target.name), e.used)).target.name

    def _replaceable(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.target.run is None]
