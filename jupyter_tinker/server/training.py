"""Does the requests of runs: from a stored payload to an operation of the engine to a result.

Payloads are checked here and not when they are accepted, so that what is wrong with one comes back
through its future and the run's order stays whole. An engine that dies costs a request time: its
run is revived and the request done again. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from ..wire import ops, tinker
from .backlog import Work
from .checkpoints import UnknownCheckpoint
from .custom_losses import CustomLosses
from .events import Events
from .futures import Futures, Request, failure, success
from .history import BOUNDARIES, LOADS, HistoryGone, operation
from .journal import PROTOBUF_TYPE, Journal, Result
from .outcome import Change, Outcome
from .revival import Revival
from .runs import Run, Spoiled, StepTotals
from .saving import Loadable, Saving
from .schema import RunRow, StepRow
from .snapshots import Snapshots
from .supervisor import EngineDied, EngineNotStarted, EngineSupervisor
from .turns import Turns

_DEATHS = 2  # of engines at one request, which is then given up
_STARTS = 2  # of an engine that fails to start, for one request
_REVIVALS = 8  # that fail, of a run, for one request
# What a paused run does not begin. It can still be saved and evaluated.
_HELD_BACK = frozenset({"forward_backward", "optim_step", "load_weights"})
_CHANGES_WEIGHTS = frozenset({"optim_step", "load_weights"})


class Trainer:
    """Performs the requests of all runs."""

    def __init__(
        self,
        *,
        supervisor: EngineSupervisor,
        journal: Journal,
        futures: Futures,
        events: Events,
        saving: Saving,
        custom_losses: CustomLosses,
        revival: Revival,
        snapshots: Snapshots,
        turns: Turns,
        stepped: Callable[[Run, StepRow, bool], Sequence[Work]],
        preview: Callable[[Run, StepRow], Awaitable[None]],
        log: Any,
    ) -> None:
        self._supervisor = supervisor
        self._journal = journal
        self._futures = futures
        self._events = events
        self._saving = saving
        self._custom_losses = custom_losses
        self._revival = revival
        self._snapshots = snapshots
        self._turns = turns
        self._stepped = stepped  # told of each step; says what else is to be recorded
        self._preview = preview  # told of each step, while the engine has its weights
        self._log = log
        self.loading: dict[str, str] = {}  # names of base models, by the run that is being made
        self.computing: dict[str, Request] = {}  # what each run is at, by the run's id
        self._kinds: dict[str, Callable[[Run, Request], Awaitable[Outcome]]] = {
            "create_model": self._create_model,
            "create_via_load": self._create_via_load,
            "forward_backward": self._forward_backward,
            "optim_step": self._optim_step,
            "load_weights": self._load_weights,
            "save_weights": saving.weights,
            "save_weights_for_sampler": saving.for_sampler,
            "save_weights_external": saving.external,
        }

    async def perform(self, run: Run, request: Request) -> None:
        """Do one request, once its run is not paused, and have its future completed; never
        raises."""
        run.totals.wait_seconds += time.monotonic() - request.accepted
        trains = request.kind in _HELD_BACK and not request.forward_only
        while True:
            if trains:
                await run.released.wait()
            async with run.lock:
                if trains and run.held_back:
                    run.release()  # so that the next wait is one, whoever paused it
                    continue
                self.computing[run.id] = request
                try:
                    await self._perform(run, request)
                except Exception:
                    self._log.exception("Request %s (%s) failed.", request.id, request.kind)
                finally:
                    self.computing.pop(run.id, None)
                return

    async def _perform(self, run: Run, request: Request) -> None:
        try:
            if run.ended is not None:
                raise ops.OpError(run.ended, "server")
            outcome = await self._attempt(run, request)
        except ops.OpError as error:
            outcome = Outcome(failure(error.message, error.category))
        except tinker.BadRequest as error:
            outcome = Outcome(failure(str(error), "user"))
        except UnknownCheckpoint as error:
            outcome = Outcome(failure(str(error.args[0]), "user"))
        except HistoryGone as error:
            outcome = Outcome(failure(str(error), "server"))
        except Exception as error:
            self._log.exception("Request %s (%s) failed.", request.id, request.kind)
            sentence = f"The server failed: {type(error).__name__}: {error}"
            outcome = Outcome(failure(sentence, "server"))
        if outcome.result.failed and outcome.change is None:
            outcome = self._failed(run, request, outcome)
        self._complete(run, request, outcome)
        if outcome.step is not None:
            await self._preview(run, outcome.step)
        if outcome.change is not None and self._supervisor.holds(run.generation):
            await self._snapshot(run, outcome.change)

    async def _attempt(self, run: Run, request: Request) -> Outcome:
        """Do a request, with as many engines as it takes. Raises `OpError`, and as it does."""
        deaths = starts = revivals = 0
        while True:
            try:
                if request.seq_id > 0:
                    await self._revival.hold(run)
                return await self._kinds[request.kind](run, request)
            except asyncio.CancelledError:
                run.generation = 0  # the engine may have done what the journal will not know of
                raise
            except ops.OpError as error:
                if error.category == "server" and request.kind in _CHANGES_WEIGHTS:
                    run.generation = 0  # whatever came of it, the journal has what the run is
                raise
            except EngineNotStarted as error:
                starts += 1
                if starts == _STARTS:
                    raise ops.OpError(f"This could not be done: {error}.", "server") from error
            except EngineDied as error:
                deaths += error.during
                revivals += not error.during
                if deaths == _DEATHS:
                    raise ops.OpError(_deadly(request), "server") from error
                if revivals == _REVIVALS:
                    raise ops.OpError(_not_revived(run), "server") from error

    async def give_up(self, run: Run, request: Request, reason: str) -> None:
        """Complete a request that will not be done."""
        async with run.lock:
            outcome = self._failed(run, request, Outcome(failure(reason, "user")))
            self._complete(run, request, outcome)

    def _failed(self, run: Run, request: Request, outcome: Outcome) -> Outcome:
        self._log.warning(
            "Run %s: %s number %d failed: %s",
            run.id,
            request.kind,
            request.seq_id,
            outcome.result.body.decode(errors="replace")[:500],
        )
        if run.ended is None and request.seq_id == 0:
            reason = "This run could not be created."
            run.end(reason)
            return Outcome(outcome.result, records=[partial(self._record_end, run, reason)])
        if run.ended is None and request.kind == "forward_backward" and not request.forward_only:
            reason = f"forward_backward number {request.seq_id} before it failed"
            return Outcome(outcome.result, _spoil(run, Spoiled(reason, skips=False)))
        return outcome

    def _record_end(self, run: Run, reason: str, db: Session) -> None:
        db.execute(update(RunRow).where(RunRow.id == run.id).values(ended=reason))
        self._events.record(db, run.id, "run_ended", reason=reason)

    def _complete(self, run: Run, request: Request, outcome: Outcome) -> None:
        """Let the run's state move on, in memory and in the journal."""
        change, row = outcome.change, None
        if change is not None:
            row = operation(
                run.id,
                run.place.advance(),
                change.kind,
                run.step,
                request_id=request.id if change.of_payload else None,
                **change.data,
            )
        records = list(outcome.records)
        if outcome.step is not None:
            records.append(partial(self._events.record_step, row=outcome.step))
            try:
                records += self._stepped(run, outcome.step, outcome.not_finite)
            except Exception:  # what is done is done, and is to be told
                self._log.exception("The rules of run %s could not be applied.", run.id)
        self._futures.complete(request, outcome.result, operation=row, records=records)

    async def _snapshot(self, run: Run, change: Change) -> None:
        if change.kind in LOADS:
            # The checkpoint may be deleted; what the run is now must not depend on it.
            task = await self._snapshots.begin(run)
            if task is not None:
                await task
        elif change.kind != "spoiled":
            await self._snapshots.consider(run, boundary=change.kind in BOUNDARIES)

    async def _ask(self, run: Run, op: ops.Op) -> tuple[dict[str, Any], list[Any]]:
        async with self._turns.training():
            return await self._supervisor.request(op, generation=run.generation)

    # Creating

    async def _create_model(self, run: Run, _: Request) -> Outcome:
        op = ops.CreateRun(run.id, run.row.base_model, run.row.base_path, run.lora)
        await self._create(run, op)
        answer = {"model_id": run.id, "type": "create_model"}
        return Outcome(success(answer), Change("create_model"), records=[self._created(run)])

    async def _create_via_load(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.CreateViaLoad, request.payload)
        source = await self._saving.loadable(body.path)
        base = run.row.base_model, run.row.base_path
        op = ops.LoadRun(run.id, *base, source.folder, body.optimizer)
        await self._create(run, op)
        answer = {"path": body.path, "model_id": run.id, "type": "load_weights"}
        change = Change("create_via_load", of_payload=True, data=_loaded(source))
        return Outcome(success(answer), change, records=[self._created(run)])

    async def _create(self, run: Run, op: ops.Op) -> None:
        run.generation = await self._supervisor.ensure_started()
        self.loading[run.id] = run.row.base_model
        try:
            result, _ = await self._ask(run, op)
        finally:
            del self.loading[run.id]
        self._take_over(run, ops.run_info(result))
        await self._journal.update_run(run.id, lora=asdict(run.lora))

    def _created(self, run: Run) -> Work:
        return partial(
            self._events.record, run_id=run.id, kind="run_created", step=run.step,
            base_model=run.row.base_model, started_from=run.row.started_from,
        )  # fmt: skip

    async def _load_weights(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.LoadWeights, request.payload)
        source = await self._saving.loadable(body.path)
        result, _ = await self._ask(run, ops.LoadWeights(run.id, source.folder, body.optimizer))
        self._take_over(run, ops.run_info(result))
        answer = {"path": body.path, "model_id": run.id, "type": "load_weights"}
        change = Change("load_weights", of_payload=True, data=_loaded(source))
        return Outcome(success(answer), change)

    @staticmethod
    def _take_over(run: Run, info: ops.RunInfo) -> None:
        """What the engine says of a run whose weights are new."""
        run.lora, run.step, run.parameters = info.lora, info.step, info.trainable_parameters
        run.spoiled = None
        run.totals = StepTotals()

    # Training

    async def _forward_backward(self, run: Run, request: Request) -> Outcome:
        definition = await self._custom_losses.definition(run.row.session_id, request.payload)
        op = ops.ForwardBackward(run.id, request.payload, definition)
        reply, buffers = await self._ask(run, op)
        result = Result(bytes(buffers[0]), PROTOBUF_TYPE)
        if request.forward_only:
            return Outcome(result)
        stats = ops.ForwardBackwardStats(**reply)
        run.totals.add(stats)
        run.computed += stats.seconds
        if stats.not_finite is not None:
            spoiled = Spoiled(stats.not_finite, skips=True, not_finite=True)
            return Outcome(result, _spoil(run, spoiled, stats=asdict(stats)))
        change = Change("forward_backward", of_payload=True, data={"stats": asdict(stats)})
        return Outcome(result, change)

    async def _optim_step(self, run: Run, request: Request) -> Outcome:
        asked = adam_of(tinker.parse(tinker.OptimStep, request.payload))
        used = run.controls.adam(asked, step=run.step)
        if run.spoiled is not None:
            return await self._not_stepped(run, asked, used, run.spoiled)
        reply, _ = await self._ask(run, ops.OptimStep(run.id, used))
        stats = ops.OptimStepStats(**reply)
        change = Change("zero_grad")
        if stats.skipped is None:
            data = {"adam": asdict(used), "grad_norm": stats.grad_norm}
            change = Change("optim_step", data=data)
        outcome = self._outcome_of_step(run, asked, used, stats, change)
        return replace(outcome, not_finite=stats.skipped is not None)

    async def _not_stepped(
        self, run: Run, asked: ops.AdamParams, used: ops.AdamParams, spoiled: Spoiled
    ) -> Outcome:
        """Drop the gradients that must not be used."""
        await self._ask(run, ops.ZeroGrad(run.id))
        if spoiled.skips:
            stats = ops.OptimStepStats(
                step=run.step,
                grad_norm=None,
                update_norm=None,
                learning_rate=used.learning_rate,
                seconds=0.0,
                memory_bytes=0,
                skipped=spoiled.reason,
            )
            outcome = self._outcome_of_step(run, asked, used, stats, Change("zero_grad"))
            return replace(outcome, not_finite=spoiled.not_finite)
        run.totals, run.spoiled = StepTotals(), None
        sentence = (
            f"This optim_step was not done because {spoiled.reason}; the gradients of the step "
            "were dropped and the weights are as they were. Send the step's forward_backward again."
        )
        return Outcome(failure(sentence, "user"), Change("zero_grad"))

    def _outcome_of_step(
        self,
        run: Run,
        asked: ops.AdamParams,
        used: ops.AdamParams,
        stats: ops.OptimStepStats,
        change: Change,
    ) -> Outcome:
        run.step, run.asked, run.spoiled = stats.step, asked, None
        run.computed += stats.seconds
        row = run.totals.row(run, stats, asked, used)
        run.totals = StepTotals()
        return Outcome(success(_metrics(row)), change, step=row)


def _loaded(source: Loadable) -> dict[str, Any]:
    """What a load is to be made of when it is made again."""
    return {"checkpoint": source.path, "created_at": source.created_at}


def _spoil(run: Run, spoiled: Spoiled, **data: Any) -> Change:
    run.spoiled = spoiled
    return Change("spoiled", data={**asdict(spoiled), **data})


def _metrics(row: StepRow) -> dict[str, Any]:
    """An optim_step's answer. What was asked and what was used, where a person may differ."""
    names = ("grad_norm", "update_norm", "learning_rate", "grad_clip_norm", "weight_decay")
    values: dict[str, float | None] = {"optimizer_step": row.step}
    for name in names:
        values[name] = getattr(row, name)
        if (requested := f"{name}_requested") in StepRow.__table__.columns:
            values[requested] = getattr(row, requested)
    if row.skipped is not None:
        values["skipped"] = 1.0
    metrics = {name: value for name, value in values.items() if value is not None}
    return {"metrics": metrics, "type": "optim_step"}


def adam_of(body: tinker.OptimStep) -> ops.AdamParams:
    """What an optim_step asks for. Raises `OpError`."""
    if body.optimizer_params is not None:
        raise ops.OpError(unsupported_optimizer(body.optimizer_params.get("type")))
    if body.adam_params is None:
        raise ops.OpError("optim_step needs adam_params.")
    return body.adam_params.params()


def unsupported_optimizer(kind: object) -> str:
    """The sentence that refuses an optimizer other than AdamW."""
    why = ", because constants of its update are not published" if kind == "dimuon" else ""
    return f"The optimizer {str(kind)[:60]!r} is not supported{why}; use AdamW, the default."


def _deadly(request: Request) -> str:
    return (
        f"The engine died {_DEATHS} times at this request ({request.kind} number "
        f"{request.seq_id}), so it is given up; the run goes on from before it. If memory ran out, "
        "send smaller batches or shorter sequences, or lower EngineSupervisor.microbatch_tokens."
    )


def _not_revived(run: Run) -> str:
    return (
        f"Run {run.id} could not be revived: the engine died {_REVIVALS} times before it had the "
        "run back. What the run was is kept; this request was not done."
    )
