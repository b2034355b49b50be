"""Finds learning rates: sweeps over copies of runs, with their clients' own newest batches.

A copy has a name in the engine and nowhere else: it is no run of a client, and in no list, journal
or history. Its operations take turns with those of all runs. Sweeps and what they found are kept in
memory, for this life of the server. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..wire import ops, tinker
from ..wire.lr_find import SweepSettings
from .custom_losses import CustomLosses
from .engine_client import EngineDied
from .events import Events
from .history import History, HistoryGone
from .lr_curve import Curve
from .lr_sweep import Batch, Sweep, batches_of, last_adam, remark
from .registry import Registry
from .revival import Revival
from .runs import Run
from .snapshots import Snapshots
from .supervisor import EngineSupervisor
from .turns import Turns

_AT_ONCE = 4  # sweeps: each holds a copy of a run in the engine's memory
_REMEMBERED = 100  # runs whose last sweep is known
_OPERATIONS = 2000  # of a run that are looked through for batches, the newest
_PATIENCE = 5.0  # seconds that a cancellation waits for the engine
_ENGINES = 2  # that may die, one after another, beneath one sweep


class SweepUnderWay(Exception):
    """A sweep cannot begin beside those that are running; the message says which."""


class LrFinder:
    """The sweeps of one server."""

    def __init__(
        self,
        *,
        supervisor: EngineSupervisor,
        turns: Turns,
        history: History,
        snapshots: Snapshots,
        revival: Revival,
        custom_losses: CustomLosses,
        events: Events,
        registry: Registry,
        log: Any,
    ) -> None:
        self._supervisor = supervisor
        self._turns = turns
        self._history = history
        self._snapshots = snapshots
        self._revival = revival
        self._custom_losses = custom_losses
        self._events = events
        self._registry = registry
        self._log = log
        self._sweeps: dict[str, Sweep] = {}  # the last of each run, the oldest first
        self._closed = False

    async def state(self, run_id: str) -> dict[str, Any]:
        """What a run's last sweep has found. Raises `UnknownRun`."""
        run = await self._registry.get(run_id)
        sweep = self._sweeps.get(run.id)
        return {"run_id": run.id, "status": "none"} if sweep is None else sweep.to_json()

    async def begin(self, run_id: str, settings: SweepSettings, *, by: str) -> dict[str, Any]:
        """Begin a sweep, and do not wait for it. Raises `UnknownRun`, `SweepUnderWay`, and
        `OpError` for a run without batches."""
        run = await self._registry.get(run_id)
        operations = await self._history.recent(run.id, run.place, _OPERATIONS)
        batches = batches_of(operations, begun=len(operations) < _OPERATIONS)
        batches = await self._kept(run, batches, settings.batches)
        adam = run.controls.adam(run.asked or last_adam(operations), step=run.step)
        sweep = Sweep(run.id, run.step, settings, by, batches, adam)
        self._check_free(run)  # and from here on nothing is waited for
        self._sweeps.pop(run.id, None)
        self._sweeps[run.id] = sweep
        self._forget()
        sweep.task = asyncio.create_task(self._perform(run, sweep))
        sweep.task.add_done_callback(lambda _: sweep.abandon())
        return sweep.to_json()

    async def cancel(self, run_id: str) -> dict[str, Any]:
        """End a run's sweep, if one is under way; its copy is freed once the engine has done what
        it is at. Raises `UnknownRun`."""
        run = await self._registry.get(run_id)
        sweep = self._sweeps.get(run.id)
        if sweep is not None and sweep.task is not None and sweep.status == "running":
            self._stop(sweep)
            await asyncio.wait([sweep.task], timeout=_PATIENCE)
        return await self.state(run.id)

    async def close(self) -> None:
        """End all sweeps; what they found is forgotten."""
        self._closed = True
        running = [sweep for sweep in self._sweeps.values() if sweep.status == "running"]
        for sweep in running:
            self._stop(sweep)
        if tasks := [sweep.task for sweep in running if sweep.task is not None]:
            await asyncio.wait(tasks, timeout=_PATIENCE)

    @staticmethod
    def _stop(sweep: Sweep) -> None:
        # Once only: the next time it would be the freeing of the copy that is cancelled.
        if sweep.stage != "stopping" and sweep.task is not None:
            sweep.stage = "stopping"
            sweep.task.cancel()

    def _check_free(self, run: Run) -> None:
        running = [name for name, sweep in self._sweeps.items() if sweep.status == "running"]
        if run.id in running:
            raise SweepUnderWay(
                f"A sweep over the learning rates of run {run.id} is under way; wait for it, or "
                "cancel it."
            )
        if self._closed:
            raise SweepUnderWay("The server is about to stop.")
        if len(running) >= _AT_ONCE:
            raise SweepUnderWay(
                f"{len(running)} sweeps are under way, of {', '.join(running)}; wait for one of "
                "them, or cancel it."
            )

    def _forget(self) -> None:
        over = [name for name, sweep in self._sweeps.items() if sweep.status != "running"]
        for name in over[: max(0, len(self._sweeps) - _REMEMBERED)]:
            del self._sweeps[name]

    async def _kept(self, run: Run, batches: list[Batch], most: int) -> list[Batch]:
        """The newest batches whose data is there, oldest first. Raises `OpError` if there are
        none."""
        newest = batches[-most:]
        kept = await self._history.kept([part for batch in newest for part in batch])
        if found := [batch for batch in newest if kept.issuperset(batch)]:
            return found
        why = (
            "The data of its steps was dropped to keep within TinkerExtension.history_bytes."
            if newest
            else "It was given none since it began."
        )
        raise ops.OpError(
            f"Run {run.id} has no recent batches to sweep over. {why} Send it a forward_backward "
            "first."
        )

    # The sweep

    async def _perform(self, run: Run, sweep: Sweep) -> None:
        """Do a sweep to whatever end it comes to; never raises."""
        settings = sweep.settings.model_dump()
        try:
            await self._tell(sweep, "lr_find_started", settings=settings)
            await self._with_engines(run, sweep)
            sweep.end("done", remark(sweep))
        except asyncio.CancelledError:
            sweep.abandon()
        except (ops.OpError, tinker.BadRequest, HistoryGone, EngineDied) as error:
            sweep.end("failed", f"The sweep could not be done: {str(error).rstrip('.')}.")
        except Exception as error:
            self._log.exception("The sweep over run %s failed.", run.id)
            sweep.end("failed", f"The server failed: {type(error).__name__}: {error}")
        if not self._closed:
            told = sweep.to_json()
            told = {name: told[name] for name in ("status", "suggestion", "message")}
            try:
                await self._tell(sweep, "lr_find_done", **told)
            except Exception:
                self._log.exception("The end of the sweep over run %s is not recorded.", run.id)

    async def _tell(
        self, sweep: Sweep, kind: Literal["lr_find_started", "lr_find_done"], **data: Any
    ) -> None:
        await self._events.emit(sweep.run_id, kind, actor=sweep.actor, step=sweep.step, **data)

    async def _with_engines(self, run: Run, sweep: Sweep) -> None:
        """Begin anew, once, where the engine died of something else."""
        for engine in range(1, _ENGINES + 1):
            try:
                await self._sweep(run, sweep)
                return
            except EngineDied as error:
                if error.during:
                    raise ops.OpError(
                        "the engine died at one of its batches; if memory ran out, lower "
                        "EngineSupervisor.microbatch_tokens.",
                        "server",
                    ) from error
                if engine == _ENGINES:
                    raise
            sweep.stage, sweep.curve = "copying", None

    async def _sweep(self, run: Run, sweep: Sweep) -> None:
        position = await self._position(run, sweep)
        async with self._revival.beside(run, position) as (name, generation):
            copy = _Copy(self, run, sweep.adam, name, generation)
            await copy.ask(ops.ZeroGrad(name))  # what the client has accumulated
            sweep.stage = "measuring"
            levels = [await copy.loss(batch, backward=False) for batch in sweep.batches]
            measured = [
                (batch, level)
                for batch, level in zip(sweep.batches, levels, strict=True)
                if level is not None
            ]
            if not measured:
                raise ops.OpError("the run's newest batches have no loss that is a finite number.")
            sweep.batches = [batch for batch, _ in measured]
            sweep.curve = curve = Curve(sweep.settings, [level for _, level in measured])
            sweep.stage = "sweeping"
            while not curve.over:
                rate = curve.learning_rate
                curve.add(await copy.loss(sweep.batches[curve.batch], backward=True))
                if not curve.over:
                    curve.diverged = not await copy.step(rate)

    async def _position(self, run: Run, sweep: Sweep) -> int:
        """Where the run is now, which is what the copy is made of. A snapshot spares it the replay
        of the steps since the last one."""
        async with run.lock:
            position, sweep.step = run.place.head, run.step
            task = None
            if self._supervisor.holds(run.generation):
                newest = await self._history.snapshots(run.id)
                if not newest or newest[-1].position != position:
                    task = await asyncio.shield(self._snapshots.begin(run))
        if task is not None:
            await asyncio.shield(task)
        return position

    async def ask(self, op: ops.Op, generation: int) -> dict[str, Any]:
        """Have the engine do an operation of a copy, when it is training's turn."""
        async with self._turns.training():
            result, _ = await self._supervisor.request(op, generation=generation)
        return result

    async def body(self, run: Run, request_id: str) -> tuple[bytes, str | None]:
        """What a request asked, and the definition of its loss if that is a client's own."""
        payload = await self._history.payload(request_id)
        return payload, await self._custom_losses.definition(run.row.session_id, payload)


@dataclass(frozen=True)
class _Copy:
    """The run that a sweep trains."""

    finder: LrFinder
    run: Run
    adam: ops.AdamParams
    name: str
    generation: int

    async def ask(self, op: ops.Op) -> dict[str, Any]:
        return await self.finder.ask(op, self.generation)

    async def loss(self, batch: Batch, *, backward: bool) -> float | None:
        """The mean loss of a batch, per unit of weight, and its gradients if they are wanted; None
        if it is, or they are, not finite, or if nothing in it has a weight."""
        total = weight = 0.0
        for request_id in batch:
            payload, definition = await self.finder.body(self.run, request_id)
            body = payload if backward else tinker.without_backward(payload)
            result = await self.ask(ops.ForwardBackward(self.name, body, definition))
            stats = ops.ForwardBackwardStats(**result)
            if stats.loss_sum is None or stats.not_finite is not None:
                return None
            total += stats.loss_sum
            weight += stats.weight_sum
        mean = total / weight if weight else math.nan
        return mean if math.isfinite(mean) else None

    async def step(self, learning_rate: float) -> bool:
        """Make a step; whether its change of the weights is finite."""
        adam = replace(self.adam, learning_rate=learning_rate)
        stats = ops.OptimStepStats(**await self.ask(ops.OptimStep(self.name, adam)))
        return stats.skipped is None
