"""What a person does to a run: turns its learning rate, pauses it, takes it back, forks it.

Controls belong to the run and hold for every client. They are in force from the next optim_step
that starts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ..wire import ops
from ..wire.controls import Change, Controls, difference
from .backlog import Backlog, Work
from .checkpoints import CheckpointPath
from .engine_client import EngineDied
from .events import Events
from .guards import Alarm, Guards
from .history import History, HistoryGone, operation
from .registry import Registry
from .revival import Revival
from .runs import Run, Spoiled, StepTotals
from .saving import Saving, path_of_step
from .schema import BranchRow, RunRow, StepRow
from .supervisor import EngineSupervisor


class Steering:
    """Changes runs on behalf of people, and by the rules that they set."""

    def __init__(
        self,
        *,
        supervisor: EngineSupervisor,
        backlog: Backlog,
        history: History,
        events: Events,
        revival: Revival,
        registry: Registry,
        saving: Saving,
        log: Any,
    ) -> None:
        self._supervisor = supervisor
        self._backlog = backlog
        self._history = history
        self._events = events
        self._revival = revival
        self._registry = registry
        self._saving = saving
        self._log = log
        self._guards: dict[str, Guards] = {}  # by run

    # Controls

    async def change(self, run_id: str, change: Change, *, by: str) -> Run:
        """Change a run's controls. Raises `UnknownRun`, and `OpError` if it has ended."""
        run = await self._living(run_id)
        before, asked = run.controls, run.asked
        after = before.changed(
            change,
            by=by,
            now=time.time(),
            step=run.step,
            asked_learning_rate=None if asked is None else asked.learning_rate,
        )
        records = self._adopt(run, after, by=by)
        if records:
            await self._backlog.put(lambda db: [record(db) for record in records])
            self._log.info("Run %s was steered by %s: %s", run.id, by, change)
        return run

    def _adopt(self, run: Run, after: Controls, *, by: str | None) -> list[Work]:
        """Put controls in force; what is to be recorded of it."""
        before, run.controls = run.controls, after
        run.release()
        if before == after:
            return []
        note = partial(self._events.record, run_id=run.id, actor=by, step=run.step)
        records: list[Work] = []
        if before.paused != after.paused:
            if after.paused:
                records.append(partial(note, kind="paused", reason=after.paused_because))
            else:
                records.append(partial(note, kind="resumed"))
        changed = difference(before, after)
        if by is not None and changed:
            records.append(partial(note, kind="control_changed", **changed))
        return [partial(_store_controls, run.id, after), *records]

    def stepped(self, run: Run, row: StepRow, not_finite: bool) -> Sequence[Work]:
        """Count a step, and look whether a rule wants the run paused; what is to be recorded.

        `not_finite`: that is why it was skipped.
        """
        after = run.controls.after_step() if row.skipped is None else run.controls
        records: list[Work] = []
        why = row.skipped if not_finite else None
        alarm = self._guard(run).look(run.controls.guards, row.step, row.loss_mean, why)
        paused = alarm is not None
        if alarm is None and why is not None:
            alarm = Alarm("non_finite", why)
        if alarm is not None:
            after = after.pause(alarm.reason) if paused else after
            guard = partial(self._events.record, run_id=run.id, step=row.step, kind="guard")
            records.append(partial(guard, **alarm._asdict(), paused=paused))
            self._log.warning("Run %s, step %d: %s", run.id, row.step, alarm.reason)
        return [*records, *self._adopt(run, after, by=None)]

    def _guard(self, run: Run) -> Guards:
        return self._guards.setdefault(run.id, Guards())

    # The past

    async def rewind(self, run_id: str, step: int, branch: int | None, *, by: str) -> Run:
        """Take a run back to right after a step; what came later is kept as a branch of its own.

        Raises `UnknownRun`, and `OpError` if that step is not, or not any more, to be had.
        """
        run = await self._living(run_id)
        async with run.lock:
            place = run.place
            try:
                number = place.branch if branch is None else branch
                position = await self._history.state_of_step(run.id, place, step, number)
                await self._history.plan(run.id, place, position)
            except HistoryGone as error:
                raise ops.OpError(str(error)) from None
            await self._branch(run, position, step, by)
            await self._rebuild(run)
        return run

    async def _branch(self, run: Run, position: int, step: int, by: str) -> None:
        """Let a branch begin behind a position: in the database at once, then in memory."""
        place = run.place
        row = BranchRow(
            run_id=run.id,
            number=place.branch + 1,
            first_position=place.last + 1,
            parent_position=position,
            step=step,
            created_at=time.time(),
            actor=by,
        )
        abandoned = {"branch": place.branch, "step": run.step}
        event = partial(self._events.record, run_id=run.id, kind="rewound", actor=by, step=step)
        works: list[Work] = [
            lambda db: db.add(row),
            partial(_rewind_controls, run.id, step),
            partial(event, branch=row.number, abandoned=abandoned),
        ]
        # Gradients of other weights: the optim_step that waits for them is to be skipped.
        spoiled = None
        if run.totals.datums or run.spoiled is not None:
            reason = f"the run was rewound to step {step} in the middle of it"
            spoiled = Spoiled(reason, skips=True)
            mark = operation(run.id, row.first_position, "spoiled", step, **asdict(spoiled))
            works.append(lambda db: db.add(mark))
        await self._history.write(works)
        place.branches.append(row)
        place.head = position
        if spoiled is not None:
            place.advance()
        run.step, run.spoiled = step, spoiled
        run.totals = StepTotals()
        # Somebody may have changed them while that was written.
        for record in self._adopt(run, run.controls.rewound(step), by=None):
            self._backlog.put(record)
        self._guards.pop(run.id, None)

    async def _rebuild(self, run: Run) -> None:
        """Have the engine hold what the run is now. If that fails, the next request tries again."""
        if not self._supervisor.holds(run.generation):
            return
        try:
            await self._revival.bring(run)
        except (EngineDied, ops.OpError, HistoryGone) as error:
            self._log.warning("Run %s is not in the engine yet: %s", run.id, error)

    async def fork(self, run_id: str, step: int, branch: int | None, *, by: str) -> CheckpointPath:
        """The checkpoint of a run's step, which new runs can start from. Raises as
        `Saving.loadable`, and `UnknownRun`."""
        run = await self._registry.get(run_id)
        path = await self._saving.make_step(path_of_step(run.id, step, branch))
        await self._events.emit(run.id, "forked", actor=by, step=step, path=str(path))
        return path

    async def _living(self, run_id: str) -> Run:
        run = await self._registry.get(run_id)
        if run.ended is not None:
            raise ops.OpError(f"Run {run.id} has ended, so it cannot be steered: {run.ended}")
        return run


def _rewind_controls(run_id: str, step: int, db: Session) -> None:
    stored = db.scalar(select(RunRow.controls).where(RunRow.id == run_id))
    _store_controls(run_id, Controls.from_json(stored).rewound(step), db)


def _store_controls(run_id: str, controls: Controls, db: Session) -> None:
    change = update(RunRow).where(RunRow.id == run_id).values(controls=controls.to_json())
    db.connection().execute(change)
