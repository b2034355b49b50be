"""Weights for runs: their first, of a base model or a checkpoint, and others loaded later.

Knows nothing of how a run is trained, nor of the order of its requests.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from ..wire import ops, tinker
from .backlog import Work
from .events import Events
from .futures import Request, success
from .outcome import Change, Outcome
from .runs import Run, StepTotals
from .saving import Loadable, Saving
from .schema import RunRow
from .training_engine import TrainingEngine


class RunLoader:
    """Has the engine make runs, and load weights into them."""

    def __init__(self, *, engine: TrainingEngine, events: Events, saving: Saving) -> None:
        self._engine = engine
        self._events = events
        self._saving = saving
        self.loading: dict[str, str] = {}  # names of base models, by the run that is being made

    async def create_model(self, run: Run, _: Request) -> Outcome:
        op = ops.CreateRun(run.id, run.row.base_model, run.row.base_path, run.lora)
        await self._create(run, op)
        answer = {"model_id": run.id, "type": "create_model"}
        return Outcome(success(answer), Change("create_model"), records=self._created(run))

    async def create_via_load(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.CreateViaLoad, request.payload)
        source = await self._saving.loadable(body.path)
        base = run.row.base_model, run.row.base_path
        op = ops.LoadRun(run.id, *base, source.folder, body.optimizer)
        await self._create(run, op)
        answer = {"path": body.path, "model_id": run.id, "type": "load_weights"}
        change = Change("create_via_load", of_payload=True, data=_loaded(source))
        return Outcome(success(answer), change, records=self._created(run))

    async def load_weights(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.LoadWeights, request.payload)
        source = await self._saving.loadable(body.path)
        op = ops.LoadWeights(run.id, source.folder, body.optimizer)
        result, _ = await self._engine.ask(run, op)
        _take_over(run, ops.run_info(result))
        answer = {"path": body.path, "model_id": run.id, "type": "load_weights"}
        change = Change("load_weights", of_payload=True, data=_loaded(source))
        return Outcome(success(answer), change)

    async def _create(self, run: Run, op: ops.Op) -> None:
        run.generation = await self._engine.ensure_started()
        self.loading[run.id] = run.row.base_model
        try:
            result, _ = await self._engine.ask(run, op)
        finally:
            del self.loading[run.id]
        _take_over(run, ops.run_info(result))

    def _created(self, run: Run) -> list[Work]:
        """What is recorded with the result: nothing may fail once the engine has made the run."""
        told = partial(
            self._events.record, run_id=run.id, kind="run_created", step=run.step,
            base_model=run.row.base_model, started_from=run.row.started_from,
        )  # fmt: skip
        return [partial(_store_lora, run.id, asdict(run.lora)), told]


def _store_lora(run_id: str, lora: dict[str, Any], db: Session) -> None:
    db.execute(update(RunRow).where(RunRow.id == run_id).values(lora=lora))


def _take_over(run: Run, info: ops.RunInfo) -> None:
    """What the engine says of a run whose weights are new."""
    run.lora, run.step, run.parameters = info.lora, info.step, info.trainable_parameters
    run.spoiled = None
    run.totals = StepTotals()


def _loaded(source: Loadable) -> dict[str, Any]:
    """What a load is to be made of when it is made again."""
    return {"checkpoint": source.path, "created_at": source.created_at}
