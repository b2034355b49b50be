"""Whose turn it is at the engine: training or sampling, which share its time when both want it.

Knows nothing of operations, runs or samplers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

# How long sampling goes on before it looks for new requests, when no training waits. A round trip
# to the engine costs about 2.5 ms, so shorter turns would waste it.
FULL_TURN = 0.05


@dataclass(eq=False)
class _Side:
    """Training or sampling: what it used, divided by its share, and what it wants."""

    share: float
    used: float = 0.0
    running: int = 0
    idle: bool = True
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Turns:
    """Gives the engine to training and to sampling in proportion to their shares of its time.

    While only training wants it, any number of operations pass at once, so that their round trips
    overlap. While both want it, one operation passes at a time, and whichever has used less for its
    share is next. What a side did not use while it wanted nothing is not made up for.
    """

    def __init__(self, sampling_share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._training = _Side(1.0 - sampling_share)
        self._sampling = _Side(sampling_share)
        self._clock = clock
        self._charged = clock()

    @asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """One training operation."""
        await self._enter(self._training)
        try:
            yield
        finally:
            self._leave(self._training)

    @asynccontextmanager
    async def sampling(self) -> AsyncIterator[float]:
        """One turn of sampling; gives the seconds after which it should begin nothing more.

        0 asks for the least that can be done, a single step.
        """
        await self._enter(self._sampling)
        try:
            yield self._length()
        finally:
            self._leave(self._sampling)

    @property
    def training_waits(self) -> int:
        return len(self._training.waiting)

    def _length(self) -> float:
        if not self._training.waiting:
            return FULL_TURN
        owed = (self._training.used - self._sampling.used) * self._sampling.share
        return min(max(owed, 0.0), FULL_TURN)

    async def _enter(self, side: _Side) -> None:
        self._charge()
        if side.idle:
            side.idle = False
            side.used = max(side.used, self._other(side).used)
        turn = asyncio.get_running_loop().create_future()
        side.waiting.append(turn)
        self._dispatch()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was ours already
                self._leave(side)
            else:
                side.waiting.remove(turn)
                self._later()
            raise

    def _leave(self, side: _Side) -> None:
        self._charge()
        side.running -= 1
        self._later()

    def _later(self) -> None:
        # Not at once: whoever left may come back before it lets go of the loop, with its next
        # operation, and is not to be taken for idle.
        asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._charge()
        while (side := self._next()) is not None:
            side.running += 1
            side.waiting.popleft().set_result(None)
        for side in (self._training, self._sampling):
            if not side.running and not side.waiting:
                side.idle = True

    def _next(self) -> _Side | None:
        """The side that may begin an operation now."""
        training, sampling = self._training, self._sampling
        if sampling.running:
            return None
        if not sampling.waiting:
            return training if training.waiting else None
        if training.running:
            return None
        if not training.waiting or sampling.used < training.used:
            return sampling
        return training

    def _other(self, side: _Side) -> _Side:
        return self._sampling if side is self._training else self._training

    def _charge(self) -> None:
        """Count the time since the last look for whoever has the engine."""
        now = self._clock()
        for side in (self._training, self._sampling):
            if side.running:
                side.used += (now - self._charged) / side.share
        self._charged = now
