"""Brings runs back into an engine: their last snapshot, and what was done since, once more.

The engine cannot tell a replayed operation from a new one, so on a CPU the run is to the last bit
what it was. Knows nothing of queues, clients or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..wire import ops, tinker
from ..wire.progress import Progress
from .backlog import Backlog
from .checkpoints import Checkpoints, parse_path
from .custom_losses import CustomLosses
from .engine_client import EngineDied
from .events import Events
from .futures import new_id
from .history import History, HistoryGone, Plan
from .progress import Task
from .runs import Run
from .schema import OperationRow, SnapshotRow
from .snapshots import Snapshots
from .supervisor import EngineSupervisor
from .turns import Turns


@dataclass(frozen=True)
class Replayed:
    """What was done once more."""

    steps: int
    seconds: float  # that the engine computed for it


class Revival:
    """Makes the states of runs."""

    def __init__(
        self,
        *,
        supervisor: EngineSupervisor,
        turns: Turns,
        history: History,
        snapshots: Snapshots,
        checkpoints: Checkpoints,
        custom_losses: CustomLosses,
        events: Events,
        backlog: Backlog,
        log: Any,
    ) -> None:
        self._supervisor = supervisor
        self._turns = turns
        self._history = history
        self._snapshots = snapshots
        self._checkpoints = checkpoints
        self._custom_losses = custom_losses
        self._events = events
        self._backlog = backlog
        self._tasks = events.progress
        self._log = log

    async def hold(self, run: Run) -> None:
        """See to it that the engine holds a run, as it is. The run's lock is held.

        Raises `EngineDied`, `OpError`, and `HistoryGone` if its state cannot be made again.
        """
        if self._supervisor.holds(run.generation):
            return
        started = time.monotonic()
        self._log.info("Run %s is being revived.", run.id)
        steps = await self.bring(run)
        seconds = time.monotonic() - started
        self._log.info("Run %s is back after %.1f s, %d steps replayed.", run.id, seconds, steps)
        event = partial(self._events.record, run_id=run.id, kind="run_revived")
        await self._backlog.put(partial(event, step=run.step, seconds=seconds, replayed=steps))

    async def bring(self, run: Run) -> int:
        """Have the engine hold what a run is now, whatever it held of it before; returns the number
        of steps that were replayed. The run's lock is held. Raises as `hold`."""
        run.generation = 0
        generation = await self._supervisor.ensure_started()
        try:
            replayed = await self.build(run, run.id, run.place.head, generation)
        finally:
            run.replay = None
        # Just this was computed since the snapshot, in however many lives: the next is due in time.
        run.computed = replayed.seconds
        run.generation = generation
        return replayed.steps

    async def build(self, run: Run, name: str, position: int, generation: int) -> Replayed:
        """Make a run's state at a position in the engine, called `name` there. Raises as `hold`."""
        while True:
            plan = await self._history.plan(run.id, run.place, position)
            try:
                with self._tasks.begin(Progress("restoring a snapshot"), run.id) as task:
                    await self._begin(run, name, plan, generation)
                    seconds = await self._replay(run, name, plan, generation, task)
            except _Damaged as damaged:
                self._log.error("%s The one before it is used.", damaged)
                assert plan.snapshot is not None
                await self._snapshots.delete([plan.snapshot])
                event = partial(self._events.record, run_id=run.id, kind="guard", paused=False)
                await self._backlog.put(partial(event, rule="snapshot", reason=str(damaged)))
            except _Dropped:
                pass  # meanwhile; the next plan does without it
            else:
                return Replayed(plan.steps, seconds)

    @asynccontextmanager
    async def beside(self, run: Run, position: int) -> AsyncIterator[tuple[str, int]]:
        """A run's state at a position, for the length of a block, beside what the run is now.

        Gives the name that the engine has for it, and the engine's generation. Raises as `hold`.
        """
        generation = await self._supervisor.ensure_started()
        name = f"{run.id}@{position}:{new_id()}"
        try:
            await self.build(run, name, position, generation)
            yield name, generation
        finally:
            with suppress(EngineDied, ops.OpError):
                await self._supervisor.request(ops.UnloadRun(name), generation=generation)

    async def _begin(self, run: Run, name: str, plan: Plan, generation: int) -> None:
        await self._ask(ops.UnloadRun(name), generation)
        row = run.row
        if plan.snapshot is None:
            return
        file, sha256 = self._snapshots.file(plan.snapshot), plan.snapshot.sha256
        op = ops.RestoreRun(name, row.base_model, row.base_path, str(file), sha256)
        try:
            result, _ = await self._ask(op, generation)
            run.parameters = ops.run_info(result).trainable_parameters
        except ops.OpError as error:
            if error.category == "server" and not await self._snapshots.whole(plan.snapshot):
                if not await self._history.has_snapshot(plan.snapshot):
                    raise _Dropped from None
                raise _Damaged(plan.snapshot, error.message) from None
            raise

    async def _replay(self, run: Run, name: str, plan: Plan, generation: int, task: Task) -> float:
        """Returns the seconds that the engine computed."""
        done, seconds = 0, 0.0
        for operation in plan.operations:
            if name == run.id:
                run.replay = (done, plan.steps)
            task.update(Progress("replaying", done, plan.steps))
            op = await self._op(run, name, operation)
            if op is None:
                continue
            result, _ = await self._ask(op, generation)
            if isinstance(op, ops.CreateRun | ops.LoadRun):
                run.parameters = ops.run_info(result).trainable_parameters
            elif isinstance(op, ops.ForwardBackward):
                seconds += ops.ForwardBackwardStats(**result).seconds
            elif isinstance(op, ops.OptimStep):
                done += 1
                stats = ops.OptimStepStats(**result)
                seconds += stats.seconds
                self._compare(run, operation, stats)
        return seconds

    async def _op(self, run: Run, name: str, operation: OperationRow) -> ops.Op | None:
        """What is asked of the engine to do an operation once more."""
        row = run.row
        payload = b""
        if operation.request_id is not None and operation.kind != "create_model":
            payload = await self._history.payload(operation.request_id)
        match operation.kind:
            case "create_model":
                return ops.CreateRun(name, row.base_model, row.base_path, run.lora)
            case "create_via_load":
                load = tinker.parse(tinker.CreateViaLoad, payload)
                folder = await self._folder(operation)
                return ops.LoadRun(name, row.base_model, row.base_path, folder, load.optimizer)
            case "load_weights":
                body = tinker.parse(tinker.LoadWeights, payload)
                folder = await self._folder(operation)
                return ops.LoadWeights(name, folder, body.optimizer)
            case "forward_backward":
                definition = await self._custom_losses.definition(row.session_id, payload)
                return ops.ForwardBackward(name, payload, definition)
            case "optim_step":
                return ops.OptimStep(name, ops.AdamParams(**operation.data["adam"]))
            case "zero_grad":
                return ops.ZeroGrad(name)
        return None

    async def _folder(self, operation: OperationRow) -> str:
        """Of the checkpoint that was loaded: only if the snapshot made then is gone."""
        path = parse_path(operation.data["checkpoint"])
        row = await self._checkpoints.find(path)
        if row is None or row.created_at != operation.data["created_at"]:
            raise HistoryGone(
                f"The run loaded {path} at this point, which was deleted or overwritten since."
            )
        return str(self._checkpoints.folder(path))

    def _compare(self, run: Run, operation: OperationRow, stats: ops.OptimStepStats) -> None:
        """Say so where a device does not compute the same twice."""
        before = operation.data.get("grad_norm")
        if stats.grad_norm != before:
            self._log.warning(
                "Step %d of run %s has gradient norm %r in its replay and had %r: this device does "
                "not compute the same twice.",
                operation.step,
                run.id,
                stats.grad_norm,
                before,
            )

    async def _ask(self, op: ops.Op, generation: int) -> tuple[dict[str, Any], list[Any]]:
        async with self._turns.training():
            try:
                return await self._supervisor.request(op, generation=generation, again=True)
            except EngineDied as error:
                # That a replay was under way says nothing against the request that waits for it.
                raise EngineDied(str(error)) from error


class _Damaged(Exception):
    def __init__(self, snapshot: SnapshotRow, reason: str) -> None:
        super().__init__(f"The snapshot of step {snapshot.step} is damaged: {reason}.")


class _Dropped(Exception):
    """A snapshot is not kept any more."""


def replay_in_words(run: Run) -> str | None:
    """How far the revival of a run is; None if it is not being revived."""
    if run.replay is None:
        return None
    done, steps = run.replay
    return f"the run is being revived: {done} of {steps} steps are replayed"
