"""The engine as sampling last saw it, and what it is to be told next.

Knows nothing of jobs, nor of which samplers the engine holds.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

from ..wire import ops
from .engine_client import EngineDied


class Engine(Protocol):
    """What is needed of the supervisor."""

    generation: int

    @property
    def running(self) -> bool: ...

    async def ensure_started(self) -> int: ...

    async def request(self, op: ops.Op) -> tuple[dict[str, Any], list[Any]]: ...


class SamplingEngine:
    """One engine, until `notice` sees another in its place; nothing is asked of one unseen.

    Chores are operations that nobody waits for. They go along with what is asked next.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._generation = 0
        self._chores: OrderedDict[ops.Op, None] = OrderedDict()

    @property
    def lives(self) -> bool:
        """Whether the engine is still the one that was seen."""
        return self._engine.running and self._engine.generation == self._generation

    def notice(self) -> bool:
        """Whether the engine is not the one that was seen; from now on it is."""
        if self.lives:
            return False
        self._generation = self._engine.generation
        self._chores.clear()
        return True

    async def ensure_started(self) -> None:
        """Raises `EngineNotStarted`."""
        await self._engine.ensure_started()

    async def ask(self, op: ops.Op) -> tuple[dict[str, Any], list[Any]]:
        """Raises `EngineDied`, also where another engine runs by now, and `OpError`."""
        # Another engine than the one we think of knows nothing of what we talk about.
        if not self.lives:
            raise EngineDied("the engine is gone")
        return await self._engine.request(op)

    # Chores

    @property
    def has_chores(self) -> bool:
        """Whether there are any, and the engine that they are for."""
        return bool(self._chores) and self.lives

    def add_chore(self, op: ops.Op) -> None:
        self._chores[op] = None

    def take_chores(self) -> list[ops.Op]:
        chores = list(self._chores)
        self._chores.clear()
        return chores

    async def do_chores(self) -> None:
        """Have those that there are done now. Raises as `ask`."""
        for chore in list(self._chores):
            del self._chores[chore]
            await self.ask(chore)
