"""Sample previews: what the weights of a step answer to a run's prompts, while the run trains on.

The weights are copied within the engine, in the run's order; the copy is sampled from as any
other, after what clients want, and freed. The run itself is not touched. Whatever goes wrong is
told in the preview's event, and disturbs nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..wire.ops import OpError
from ..wire.previews import Preview
from ..wire.sampling import SnapshotSampler
from ..wire.tinker import BadRequest
from .engine_client import EngineDied
from .futures import new_id
from .history import HistoryGone
from .preview_store import PreviewStore
from .preview_text import answer, body, encoded, how
from .registry import Registry
from .revival import Revival
from .runs import Run
from .sample_jobs import Job, Outcome
from .samplers import Target, preview_of
from .sampling import Sampling
from .schema import EventRow, StepRow
from .supervisor import EngineSupervisor

_LONGEST = 600.0  # seconds of sampling, after which a preview is given up
_PATIENCE = 30.0  # seconds for which it lets all clients' samples go first


@dataclass(eq=False)
class _Round:
    """One preview: a run's prompts, asked of the weights of one step."""

    run: Run
    preview: Preview
    by: str | None  # who asked for it; None: it was due
    step: int
    branch: int
    generation: int = 0  # of the engine that has the copy
    began: float = field(default_factory=time.monotonic)
    skipped: int = 0  # that were due meanwhile
    mark: str = field(default_factory=new_id)

    @property
    def target(self) -> Target:
        row = self.run.row
        name = preview_of(self.run.id, self.mark)
        return Target(name, row.base_model, row.base_path, run=self.run.id)


class Previews:
    """The previews of all runs; of each at most one at a time."""

    def __init__(
        self,
        *,
        store: PreviewStore,
        supervisor: EngineSupervisor,
        registry: Registry,
        revival: Revival,
        sampling: Sampling,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        log: Any,
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._registry = registry
        self._revival = revival
        self._sampling = sampling
        self._spawn = spawn
        self._log = log
        self._going: dict[str, _Round] = {}  # by run

    # What people ask

    async def describe(self, run_id: str) -> dict[str, Any]:
        """A run's setting, and the step that is being sampled (None: none is). Raises
        `UnknownRun`."""
        run = await self._registry.get(run_id)
        going = self._going.get(run.id)
        setting = await self._store.setting(run.id)
        return {**setting.to_json(), "sampling": None if going is None else going.step}

    async def change(self, run_id: str, preview: Preview, *, by: str) -> None:
        """Set what a run is asked, from its next step on. Raises `UnknownRun`, `OpError` if it has
        ended, and `BadRequest` for prompts that its model does not take."""
        run = await self._living(run_id)
        if preview.prompts:
            await asyncio.to_thread(encoded, Path(run.row.base_path), preview)
        await self._store.change(run.id, preview, step=run.step, by=by)

    async def now(self, run_id: str, *, by: str) -> None:
        """Begin a preview of what a run is now, also a paused one. Raises `UnknownRun`, and
        `OpError` if there is nothing to ask, or nothing to ask it of."""
        run = await self._living(run_id)
        preview = (await self._store.setting(run.id)).preview
        if not preview.prompts:
            raise OpError("This run has no prompts to answer; set some first.")
        if not run.place.head:
            raise OpError(f"Run {run.id} has no weights yet; ask again once it is created.")
        if (going := self._going.get(run.id)) is not None:
            raise OpError(
                f"Step {going.step} of this run is still being sampled; ask again when it is done."
            )
        self._spawn(self._asked(self._begin(run, preview, by)))

    async def rounds(self, run_id: str, after: int, limit: int) -> list[EventRow]:
        """What a run answered: events with an id above `after`, oldest first. Raises
        `UnknownRun`."""
        run = await self._registry.get(run_id)
        return await self._store.rounds(run.id, after, limit)

    async def _living(self, run_id: str) -> Run:
        run = await self._registry.get(run_id)
        if run.ended is not None:
            raise OpError(f"Run {run.id} has ended, so it answers no prompts: {run.ended}")
        return run

    # What a run does

    async def stepped(self, run: Run, row: StepRow) -> None:
        """Begin a preview of a step that was just done, if one is due. The run's lock is held, so
        that the engine has the very weights; never raises."""
        if row.skipped is not None:
            return
        try:
            preview = (await self._store.setting(run.id)).preview
            if not preview.due(row.step):
                return
            if (going := self._going.get(run.id)) is not None:
                going.skipped += 1
                return
            one = self._begin(run, preview, None)
            self._spawn(self._finish(one, await self._copy(one)))
        except Exception:
            self._log.exception("A preview of run %s could not be begun.", run.id)
            self._going.pop(run.id, None)

    def _begin(self, run: Run, preview: Preview, by: str | None) -> _Round:
        one = _Round(run, preview, by, run.step, run.place.branch)
        self._going[run.id] = one
        return one

    async def _asked(self, one: _Round) -> None:
        run = one.run
        try:
            async with run.lock:
                if run.ended is not None:
                    raise OpError(run.ended)
                await self._revival.hold(run)
                one.step, one.branch = run.step, run.place.branch
                copied = await self._copy(one)
        except Exception as error:
            copied = _failed(error)
        except BaseException:
            self._going.pop(run.id, None)
            raise
        await self._finish(one, copied)

    async def _copy(self, one: _Round) -> Awaitable[Any]:
        """Put the copying in the engine's line, behind what the run has done; gives its result.

        The run's lock is held. What it does next need not wait for more than that.
        """
        one.generation = one.run.generation
        op = SnapshotSampler(one.target.name, one.run.id)
        try:
            return await self._supervisor.begin(op, generation=one.generation)
        except EngineDied as error:
            return _failed(error)

    # One preview

    async def _finish(self, one: _Round, copied: Awaitable[Any]) -> None:
        """Sample from the copy, tell what came of it, and free it."""
        answers = [answer(prompt) for prompt in one.preview.prompts]
        error = None
        try:
            try:
                answers = await self._answers(one, copied)
            except Exception as problem:
                error = self._sentence(one, problem)
            finally:
                self._sampling.pump.unload(one.target.name)
            await self._tell(one, answers, error)
        finally:
            self._going.pop(one.run.id, None)

    async def _tell(self, one: _Round, answers: list[dict[str, Any]], error: str | None) -> None:
        await self._store.add_round(
            one.run.id,
            step=one.step,
            by=one.by,
            branch=one.branch,
            answers=answers,
            error=error,
            skipped=one.skipped,
            seconds=time.monotonic() - one.began,
            **how(one.preview),
        )

    async def _answers(self, one: _Round, copied: Awaitable[Any]) -> list[dict[str, Any]]:
        await copied
        if not self._supervisor.holds(one.generation):
            raise EngineDied("the engine died")
        self._sampling.pump.adopt(one.target)
        folder = Path(one.run.row.base_path)
        text, prompts = await asyncio.to_thread(encoded, folder, one.preview)
        outcomes = await self._sampled(one, prompts)
        if any(isinstance(outcome, OpError) for outcome in outcomes):
            if one.run.ended is not None:
                raise OpError(one.run.ended)
            if not self._supervisor.holds(one.generation):
                raise EngineDied("the engine died")
        return await asyncio.to_thread(
            lambda: [
                answer(prompt, text, outcome)
                for prompt, outcome in zip(one.preview.prompts, outcomes, strict=True)
            ]
        )

    async def _sampled(self, one: _Round, prompts: list[list[int]]) -> list[Outcome]:
        """What each prompt is answered with. Raises `TimeoutError`."""
        loop = asyncio.get_running_loop()
        outcomes: list[asyncio.Future[Outcome]] = [loop.create_future() for _ in prompts]
        jobs = [
            self._job(one, prompt, outcome)
            for prompt, outcome in zip(prompts, outcomes, strict=True)
        ]
        try:
            for job in jobs:
                self._sampling.pump.put(job)
            async with asyncio.timeout(_LONGEST):
                return await asyncio.gather(*outcomes)
        finally:
            for job, outcome in zip(jobs, outcomes, strict=True):
                if not outcome.done() or outcome.cancelled():
                    self._sampling.pump.cancel(job, OpError("This preview was given up."))

    def _job(self, one: _Round, prompt: list[int], outcome: asyncio.Future[Outcome]) -> Job:
        def finish(result: Outcome) -> None:
            if not outcome.done():
                outcome.set_result(result)

        job = self._sampling.job(one.target, body(one.preview, prompt), 1, finish, None)
        job.yields_until = time.monotonic() + _PATIENCE
        return job

    def _sentence(self, one: _Round, problem: Exception) -> str:
        """Why there are no answers."""
        match problem:
            case TimeoutError():
                return f"This took longer than {_LONGEST:g} seconds, so it was given up."
            case EngineDied():
                return "The engine ended before this was sampled; the run goes on."
            case OpError() | BadRequest() | HistoryGone():
                return str(problem)
        self._log.error("A preview of run %s failed.", one.run.id, exc_info=problem)
        return f"The server failed: {type(problem).__name__}: {problem}"


def _failed(error: Exception) -> Awaitable[Any]:
    failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    failed.set_exception(error)
    return failed
