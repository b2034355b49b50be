"""The engine, asked in training's turns.

Knows nothing of what an operation does, nor of requests.
"""

from __future__ import annotations

from typing import Any

from ..wire import ops
from .runs import Run
from .supervisor import EngineSupervisor
from .turns import Turns


class TrainingEngine:
    """Has the engine that holds a run do something with it, when it is training's turn."""

    def __init__(self, supervisor: EngineSupervisor, turns: Turns) -> None:
        self._supervisor = supervisor
        self._turns = turns

    async def ensure_started(self) -> int:
        """Returns the engine's generation. Raises `EngineNotStarted`."""
        return await self._supervisor.ensure_started()

    async def ask(self, run: Run, op: ops.Op) -> tuple[dict[str, Any], list[Any]]:
        """Returns result and buffers. Raises as `EngineSupervisor.request`."""
        async with self._turns.training():
            return await self._supervisor.request(op, generation=run.generation)
