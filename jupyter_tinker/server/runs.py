"""A run's queue: its requests one at a time in the order of their numbers, however they came in.

Knows nothing of what a request does, of HTTP or of the engine.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ..wire import ops
from ..wire.controls import Controls
from .futures import Request
from .history import Place
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
        self.loss_sum += math.nan if stats.loss_sum is None else stats.loss_sum
        self.weight_sum += stats.weight_sum
        self.tokens += stats.num_tokens
        self.datums += stats.num_datums
        self.compute_seconds += stats.seconds

    @property
    def loss_mean(self) -> float | None:
        """Per unit of weight; None where there is none that is finite."""
        mean = self.loss_sum / self.weight_sum if self.weight_sum else math.nan
        return mean if math.isfinite(mean) else None

    def row(
        self,
        run: Run,
        stats: ops.OptimStepStats,
        asked: ops.AdamParams,
        used: ops.AdamParams,
    ) -> StepRow:
        """The step's row in the database."""
        counted = self.datums and math.isfinite(self.loss_sum)
        return StepRow(
            run_id=run.id,
            branch=run.place.branch,
            step=stats.step,
            time=time.time(),
            skipped=stats.skipped,
            loss_sum=self.loss_sum if counted else None,
            loss_mean=self.loss_mean,
            weight_sum=self.weight_sum,
            tokens=self.tokens,
            datums=self.datums,
            grad_norm=stats.grad_norm,
            update_norm=stats.update_norm,
            learning_rate=used.learning_rate,
            learning_rate_requested=asked.learning_rate,
            grad_clip_norm=used.grad_clip_norm,
            grad_clip_norm_requested=asked.grad_clip_norm,
            weight_decay=used.weight_decay,
            weight_decay_requested=asked.weight_decay,
            compute_seconds=self.compute_seconds + stats.seconds,
            wait_seconds=self.wait_seconds,
            memory_bytes=stats.memory_bytes,
        )


@dataclass(frozen=True)
class Spoiled:
    """Why the gradients since the last step must not be used.

    `skips`: the next optim_step succeeds, and leaves everything as it is; else it fails.
    """

    reason: str
    skips: bool
    not_finite: bool = False  # a loss or a gradient is


@dataclass(eq=False)
class Run:
    """A run that this server's life has met."""

    row: RunRow
    lora: ops.LoraSpec
    place: Place = field(default_factory=Place)
    controls: Controls = field(default_factory=Controls)
    ended: str | None = None  # why it computes no more
    spoiled: Spoiled | None = None
    totals: StepTotals = field(default_factory=StepTotals)
    step: int = 0  # of the optimizer
    asked: ops.AdamParams | None = None  # by the last optim_step
    # In the engine
    generation: int = 0  # of the engine that holds it; 0: none does
    parameters: int = 0  # that are trained
    computed: float = 0.0  # seconds since its last snapshot was begun, in all lives
    replay: tuple[int, int] | None = None  # steps done, and steps to do, while it is revived
    # Held by whoever changes it, or asks the engine something that must see it unchanged.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    released: asyncio.Event = field(default_factory=asyncio.Event)  # not paused, or ended

    def __post_init__(self) -> None:
        self.release()

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def held_back(self) -> bool:
        """Whether it may not train now."""
        return self.controls.paused and self.ended is None

    def release(self) -> None:
        """Let those that wait know whether it is held back."""
        if self.held_back:
            self.released.clear()
        else:
            self.released.set()

    def end(self, reason: str) -> None:
        """It computes no more; the first reason stays."""
        self.ended = self.ended or reason
        self.release()


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
