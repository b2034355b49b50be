"""Keeps the engine sampling: hands it requests, asks it to decode, and passes on what it finished.

Knows nothing of HTTP, futures or the database.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any

from ..wire import ops, sampling
from ..wire.ops import OpError
from .engine_client import EngineDied
from .loaded import LoadedSamplers
from .open_jobs import OpenJobs
from .sample_jobs import Job, Outcome
from .sampler_loader import SamplerLoader
from .samplers import Target
from .sampling_engine import Engine, SamplingEngine
from .turns import Turns


class Pump:
    """Works while there are jobs.

    The engine, which has its samplers take turns, holds at most `max_samples` sequences of each and
    `max_loaded` samplers that can be loaded again; the rest waits here.
    """

    def __init__(
        self,
        engine: Engine,
        turns: Turns,
        *,
        max_samples: int,
        max_loaded: int,
        revive: Callable[[Target], Awaitable[None]],
        log: Any,
    ) -> None:
        self._engine = SamplingEngine(engine)
        self._turns = turns
        self._max_samples = max_samples
        self._log = log
        self._loaded = LoadedSamplers(max_loaded)
        self._jobs = OpenJobs(self._loaded.use, log)
        self._loader = SamplerLoader(
            self._engine, self._jobs, self._loaded, revive=revive, wake=self._start, log=log
        )
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # What others ask

    def put(self, job: Job) -> None:
        self._jobs.put(job)
        self._start()

    def cancel(self, job: Job, reason: OpError) -> None:
        """Give up a job; one that is finished is left alone."""
        if self._jobs.held.get(job.id) is job:
            del self._jobs.held[job.id]
            self._engine.add_chore(sampling.CancelSample(job.id))
        elif not self._jobs.withdraw(job):
            return
        self._jobs.finish(job, reason)
        self._start()

    def adopt(self, target: Target) -> None:
        """Know a copy of a run's weights that the engine, as it lives now, has just made."""
        self._loader.adopt(target)

    def unload(self, name: str) -> None:
        """Free a sampler's memory in the engine."""
        self._loader.unload(name)

    def copies(self, run_id: str) -> list[str]:
        """The copies of a run's weights in the engine, least recently used first."""
        return self._loader.copies(run_id)

    @property
    def loading(self) -> Target | None:
        """What the engine loads now."""
        return self._loader.loading

    def pending(self, name: str) -> int:
        """Jobs of a sampler that are not finished."""
        return self._jobs.pending(name)

    def ahead(self, job: Job) -> int | None:
        """How many jobs of its sampler wait before this one; None if it is at the engine."""
        at_engine = job.id in self._jobs.held
        return None if at_engine else self._jobs.line.ahead(job.target.name, job)

    async def close(self) -> None:
        tasks = [*self._loader.tasks, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # The work

    def _start(self) -> None:
        self._wake.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            if not self._jobs.line and not self._jobs.held and not self._engine.has_chores:
                self._engine.take_chores()
                self._wake.clear()
                continue
            try:
                async with self._turns.sampling() as seconds:
                    await self._turn(seconds)
            except EngineDied as error:
                self._loader.see_engine(str(error), guilty=error.during)
            except Exception as error:
                self._log.exception("Sampling failed.")
                reason = f"The server failed: {type(error).__name__}: {error}"
                self._give_up_all(OpError(reason, "server"))

    async def _turn(self, seconds: float) -> None:
        """One look at what waits, one `Decode`, and what came of it."""
        try:
            await self._engine.ensure_started()
        except EngineDied as error:
            self._loader.see_engine()
            self._give_up_all(OpError(f"This could not be sampled: {error}.", "server"))
            return
        self._loader.see_engine()
        # While one sampler was loaded, jobs of another may have been cancelled.
        new = [job for job in await self._admit() if job.id in self._jobs.held]
        chores = self._engine.take_chores()
        asked: list[ops.Op] = [*chores, *(job.operation() for job in new)]
        decodes = bool(self._jobs.held)
        if decodes:
            asked.append(sampling.Decode(seconds))
        at_engine = list(self._jobs.held.values())
        # In one go, so that all this costs one round trip. They arrive in this order.
        answers = await asyncio.gather(*map(self._engine.ask, asked), return_exceptions=True)
        died = [answer for answer in answers if isinstance(answer, EngineDied)]
        if died:
            raise max(died, key=lambda error: error.during)
        for job, answer in zip(new, answers[len(chores) :], strict=False):
            if isinstance(answer, BaseException):
                self._refused(job, answer)
        if decodes:
            self._decoded(answers[-1], at_engine)

    def _refused(self, job: Job, answer: BaseException) -> None:
        if not isinstance(answer, OpError):
            raise answer
        self._jobs.finish_held(job.id, answer)

    def _decoded(self, answer: Any, at_engine: list[Job]) -> None:
        if isinstance(answer, OpError):
            for job in at_engine:
                self.cancel(job, answer)
            return
        if isinstance(answer, BaseException):
            raise answer
        result = sampling.decoded(answer[0])
        for request, tokens in result.streamed.items():
            streaming = self._jobs.held.get(request)
            if streaming is not None and streaming.stream is not None:
                streaming.streamed = True
                streaming.stream(tokens)
        outcomes: list[tuple[str, Outcome]] = [
            (request, bytes(body)) for request, body in zip(result.finished, answer[1], strict=True)
        ]
        outcomes += [(f.request, OpError(f.error, f.category)) for f in result.failed]
        for request, outcome in outcomes:
            self._jobs.finish_held(request, outcome)
        if not result.unfinished:
            self._lost(at_engine)

    def _lost(self, at_engine: list[Job]) -> None:
        """Requests that the engine was given, and does not know: waiting would never end."""
        for job in at_engine:
            reason = OpError("The engine lost this request to sample.", "server")
            self._jobs.finish_held(job.id, reason)

    def _give_up_all(self, reason: OpError) -> None:
        for job in self._jobs.all():
            self.cancel(job, reason)

    # Handing over

    async def _admit(self) -> list[Job]:
        """Take jobs from the line while the engine may hold more; their samplers are loaded."""
        new: list[Job] = []
        held: Counter[str] = Counter()
        for job in self._jobs.held.values():
            held[job.target.name] += job.samples

        now = time.monotonic()
        urgent = any(
            not job.yields_until for job in chain(self._jobs.held.values(), self._jobs.line)
        )

        def fits(job: Job) -> bool:
            if urgent and job.yields_until > now:
                return False
            before = held[job.target.name]
            return not before or before + job.samples <= self._max_samples

        while (following := self._next(fits)) is not None:
            job = following
            if job.target.name not in self._loaded:
                if not await self._loader.load(job.target):
                    break
                continue
            self._loaded.use(job.target.name)
            new.append(self._jobs.hand_over(job.target.name))
            held[job.target.name] += job.samples
        return new

    def _next(self, fits: Callable[[Job], bool]) -> Job | None:
        """What the engine is given next. A job that was there when one died is alone there: if that
        one dies, too, it was of this job, and not of its neighbours."""
        held = self._jobs.held
        if any(job.deaths for job in held.values()):
            return None
        suspect = self._jobs.line.first(lambda job: job.deaths > 0)
        if suspect is not None:
            return None if held else suspect
        return self._jobs.line.first(fits)
