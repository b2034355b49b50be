"""A run's queue: its requests one at a time in the order of their numbers, however they came in.

Knows nothing of what a request does, of HTTP or of the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..wire import ops
from .futures import Request
from .schema import RunRow, StepRow


@dataclass
class StepTotals:
    """What the requests since the last optimizer step add up to."""

    loss_sum: float = 0.0
    weight_sum: float = 0.0
    tokens: int = 0
    datums: int = 0
    compute_seconds: float = 0.0
    wait_seconds: float = 0.0

    def add(self, stats: ops.ForwardBackwardStats) -> None:
        self.loss_sum += stats.loss_sum
        self.weight_sum += stats.weight_sum
        self.tokens += stats.num_tokens
        self.datums += stats.num_datums
        self.compute_seconds += stats.seconds

    def row(self, run_id: str, time: float, stats: ops.OptimStepStats) -> StepRow:
        """The step's row in the database."""
        return StepRow(
            run_id=run_id,
            step=stats.step,
            time=time,
            loss_sum=self.loss_sum if self.datums else None,
            loss_mean=self.loss_sum / self.weight_sum if self.weight_sum else None,
            weight_sum=self.weight_sum,
            tokens=self.tokens,
            datums=self.datums,
            grad_norm=stats.grad_norm,
            update_norm=stats.update_norm,
            learning_rate=stats.learning_rate,
            compute_seconds=self.compute_seconds + stats.seconds,
            wait_seconds=self.wait_seconds,
            memory_bytes=stats.memory_bytes,
        )


@dataclass(eq=False)
class Run:
    """A run that this server's life has met."""

    row: RunRow
    lora: ops.LoraSpec
    generation: int = 0  # of the engine that holds it; 0: none does
    ended: str | None = None  # why it computes no more
    spoiled: str | None = None  # why the gradients since the last step must not be used
    totals: StepTotals = field(default_factory=StepTotals)

    @property
    def id(self) -> str:
        return self.row.id


def id_of_run(session_id: str, number: int) -> str:
    """The id of a session's run: the SDK composes it by itself, in just this way."""
    return f"{session_id}:train:{number}"


class RunQueue:
    """Orders a run's requests by `seq_id`, starting with `first`.

    `perform` does one request and never raises. `give_up` fails one that will not be done, with a
    reason. A number that has not come after `patience` seconds is taken as lost: what waits behind
    it is given up, and the order goes on behind that.
    """

    def __init__(
        self,
        perform: Callable[[Request], Awaitable[None]],
        give_up: Callable[[Request, str], Awaitable[None]],
        *,
        first: int,
        patience: float,
    ) -> None:
        self._perform = perform
        self._give_up = give_up
        self._patience = patience
        self._next = first
        self._waiting: dict[int, Request] = {}
        self._worker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def put(self, request: Request) -> None:
        self._waiting[request.seq_id] = request
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def drained(self) -> None:
        """Wait until nothing is being done that could be."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def close(self) -> None:
        """Stop at once; what is queued stays undone."""
        self._disarm()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        self._disarm()
        while self._waiting:
            if (request := self._waiting.pop(self._next, None)) is not None:
                await self._perform(request)
                self._next += 1
            elif (early := min(self._waiting)) < self._next:
                late = self._waiting.pop(early)
                await self._give_up(late, _too_late(late.seq_id))
            else:
                self._arm()
                return

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._patience, self._lose)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lose(self) -> None:
        self._timer = None
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._skip_gap())

    async def _skip_gap(self) -> None:
        missing = self._next
        for seq_id in sorted(self._waiting):
            request = self._waiting.pop(seq_id)
            self._next = seq_id + 1
            await self._give_up(request, _never_came(missing, self._patience))
        await self._work()


def _never_came(missing: int, patience: float) -> str:
    return (
        f"Request number {missing} of this run did not arrive within {patience:g} seconds, so this "
        "later one cannot be done in its order; send the step again."
    )


def _too_late(seq_id: int) -> str:
    return (
        f"Request number {seq_id} came after its turn was given up; send the step again "
        "with new numbers."
    )
