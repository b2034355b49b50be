"""Has the requests of runs performed, and what came of them stored and told.

Payloads are checked when they are performed and not when they are accepted, so that what is wrong
with one comes back through its future and the run's order stays whole. An engine that dies costs a
request time: its run is revived and the request done again. Knows nothing of HTTP, nor of what the
engine does for a request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from ..wire import ops, tinker
from .backlog import Work, patiently
from .checkpoints import UnknownCheckpoint
from .engine_client import EngineDied
from .events import Events
from .futures import Futures, Request, failure, told
from .history import BOUNDARIES, LOADS, HistoryGone, operation
from .journal import Result
from .outcome import Change, Outcome
from .revival import Revival
from .run_loading import RunLoader
from .runs import Run, Spoiled
from .saving import Saving
from .schema import RunRow, StepRow
from .snapshots import Snapshots
from .supervisor import EngineNotStarted, EngineSupervisor
from .suspects import Suspects
from .training_steps import TrainingSteps, spoil

_DEATHS = 2  # of engines at one request, which is then given up
# For so long an engine that fails to start is started again, for one request; its pauses grow.
_START_SECONDS = 30.0
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
        futures: Futures,
        events: Events,
        loader: RunLoader,
        steps: TrainingSteps,
        saving: Saving,
        revival: Revival,
        snapshots: Snapshots,
        suspects: Suspects,
        stepped: Callable[[Run, StepRow, bool], Sequence[Work]],
        preview: Callable[[Run, StepRow], Awaitable[None]],
        log: Any,
    ) -> None:
        self._supervisor = supervisor
        self._futures = futures
        self._events = events
        self._revival = revival
        self._snapshots = snapshots
        self._suspects = suspects
        self._stepped = stepped  # told of each step; says what else is to be recorded
        self._preview = preview  # told of each step, while the engine has its weights
        self._log = log
        self.computing: dict[str, Request] = {}  # what each run is at, by the run's id
        self._kinds: dict[str, Callable[[Run, Request], Awaitable[Outcome]]] = {
            "create_model": loader.create_model,
            "create_via_load": loader.create_via_load,
            "forward_backward": steps.forward_backward,
            "optim_step": steps.optim_step,
            "load_weights": loader.load_weights,
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
        deaths = revivals = 0
        give_up_at: float | None = None
        while True:
            try:
                return await patiently(partial(self._do, run, request))
            except asyncio.CancelledError:
                run.generation = 0  # the engine may have done what the journal will not know of
                raise
            except ops.OpError as error:
                if error.category == "server" and request.kind in _CHANGES_WEIGHTS:
                    run.generation = 0  # whatever came of it, the journal has what the run is
                raise
            except EngineNotStarted as error:
                now = time.monotonic()
                give_up_at = now + _START_SECONDS if give_up_at is None else give_up_at
                if error.refused or now >= give_up_at:
                    raise ops.OpError(f"This could not be done: {error}.", "server") from error
            except EngineDied as error:
                deaths += error.during
                revivals += not error.during
                if deaths == _DEATHS:
                    raise ops.OpError(_deadly(request), "server") from error
                if revivals == _REVIVALS:
                    raise ops.OpError(_not_revived(run), "server") from error

    async def _do(self, run: Run, request: Request) -> Outcome:
        """Do a request, with the engine that there is. What cannot be done twice is the engine's
        last part in it, and nothing is asked of the database after that."""
        if request.seq_id > 0:
            await self._revival.hold(run)
        async with self._suspects.alone(request):
            return await self._kinds[request.kind](run, request)

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
            error = told(outcome.result)["error"]
            ends = partial(self._record_end, run, reason, error)
            return Outcome(outcome.result, records=[ends])
        if run.ended is None:
            outcome = replace(outcome, records=[self._told_of(run, request, outcome.result)])
        if run.ended is None and request.kind == "forward_backward" and not request.forward_only:
            reason = f"forward_backward number {request.seq_id} before it failed"
            return replace(outcome, change=spoil(run, Spoiled(reason, skips=False)))
        return outcome

    def _told_of(self, run: Run, request: Request, failed: Result) -> Work:
        kind, said = "forward" if request.forward_only else request.kind, told(failed)
        return partial(
            self._events.record, run_id=run.id, kind="request_failed", step=run.step,
            request=kind, seq_id=request.seq_id, error=said["error"], category=said["category"],
        )  # fmt: skip

    def _record_end(self, run: Run, reason: str, error: str, db: Session) -> None:
        db.execute(update(RunRow).where(RunRow.id == run.id).values(ended=reason))
        self._events.record(db, run.id, "run_ended", reason=reason, failed=True, error=error)

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
