"""Keeps the engine sampling: hands it requests, asks it to decode, and passes on what it finished.

Knows nothing of HTTP, futures or the database.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any, Protocol

from ..wire import ops, sampling
from ..wire.ops import OpError
from .engine_client import EngineDied
from .loaded import LoadedSamplers
from .sample_jobs import Job, Outcome, engine_gone
from .samplers import Target
from .turns import Turns
from .waiting_line import WaitingLine

_DEATHS = 2  # of engines at a request, which is then given up


class Engine(Protocol):
    """What is needed of the supervisor."""

    generation: int

    @property
    def running(self) -> bool: ...

    async def ensure_started(self) -> int: ...

    async def request(self, op: ops.Op) -> tuple[dict[str, Any], list[Any]]: ...


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
        self._engine = engine
        self._turns = turns
        self._max_samples = max_samples
        self._revive = revive  # makes a copy of a run's weights again; raises `OpError`
        self._reviving: dict[str, asyncio.Task[None]] = {}  # by the name of the sampler
        self._parked: dict[str, list[Job]] = {}  # jobs that wait for that
        self._log = log
        self._generation = 0
        self._line = WaitingLine[Job]()
        self._held: dict[str, Job] = {}
        self._loaded = LoadedSamplers(max_loaded)
        self._pending: dict[str, int] = {}  # jobs by the name of their sampler
        self._chores: OrderedDict[ops.Op, None] = OrderedDict()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.loading: Target | None = None  # what the engine loads now

    # What others ask

    def put(self, job: Job) -> None:
        self._pending[job.target.name] = self._pending.get(job.target.name, 0) + 1
        self._line.put(job.target.name, job)
        self._start()

    def cancel(self, job: Job, reason: OpError) -> None:
        """Give up a job; one that is finished is left alone."""
        if self._held.get(job.id) is job:
            del self._held[job.id]
            self._chores[sampling.CancelSample(job.id)] = None
        elif job in (parked := self._parked.get(job.target.name, [])):
            parked.remove(job)
        elif not self._line.remove(job.target.name, job):
            return
        self._finish(job, reason)
        self._start()

    def adopt(self, target: Target) -> None:
        """Know a copy of a run's weights that the engine, as it lives now, has just made."""
        self._see_engine()
        self._loaded.add(target)

    def unload(self, name: str) -> None:
        """Free a sampler's memory in the engine."""
        if self._loaded.remove(name):
            self._chores[sampling.UnloadSampler(name)] = None
            self._start()

    def copies(self, run_id: str) -> list[str]:
        """The copies of a run's weights in the engine, least recently used first."""
        self._see_engine()
        return self._loaded.copies(run_id)

    def pending(self, name: str) -> int:
        """Jobs of a sampler that are not finished."""
        return self._pending.get(name, 0)

    def ahead(self, job: Job) -> int | None:
        """How many jobs of its sampler wait before this one; None if it is at the engine."""
        return None if job.id in self._held else self._line.ahead(job.target.name, job)

    async def close(self) -> None:
        tasks = [*self._reviving.values(), *([self._task] if self._task else [])]
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
            if not self._line and not self._held and not (self._chores and self._same_engine):
                self._chores.clear()
                self._wake.clear()
                continue
            try:
                async with self._turns.sampling() as seconds:
                    await self._turn(seconds)
            except EngineDied as error:
                self._see_engine(str(error), guilty=error.during)
            except Exception as error:
                self._log.exception("Sampling failed.")
                reason = f"The server failed: {type(error).__name__}: {error}"
                self._give_up_all(OpError(reason, "server"))

    async def _turn(self, seconds: float) -> None:
        """One look at what waits, one `Decode`, and what came of it."""
        try:
            generation = await self._engine.ensure_started()
        except EngineDied as error:
            self._see_engine()
            self._give_up_all(OpError(f"This could not be sampled: {error}.", "server"))
            return
        if generation != self._generation:
            self._see_engine()
        # While one sampler was loaded, jobs of another may have been cancelled.
        new = [job for job in await self._admit() if job.id in self._held]
        chores = list(self._chores)
        self._chores.clear()
        asked: list[ops.Op] = [*chores, *(job.operation() for job in new)]
        decodes = bool(self._held)
        if decodes:
            asked.append(sampling.Decode(seconds))
        at_engine = list(self._held.values())
        # In one go, so that all this costs one round trip. They arrive in this order.
        answers = await asyncio.gather(*map(self._ask, asked), return_exceptions=True)
        died = [answer for answer in answers if isinstance(answer, EngineDied)]
        if died:
            raise max(died, key=lambda error: error.during)
        for job, answer in zip(new, answers[len(chores) :], strict=False):
            if isinstance(answer, BaseException):
                self._refused(job, answer)
        if decodes:
            self._decoded(answers[-1], at_engine)

    async def _ask(self, op: ops.Op) -> tuple[dict[str, Any], list[Any]]:
        # Another engine than the one we think of knows nothing of what we talk about.
        if not self._same_engine:
            raise EngineDied("the engine is gone")
        return await self._engine.request(op)

    def _refused(self, job: Job, answer: BaseException) -> None:
        if not isinstance(answer, OpError):
            raise answer
        if self._held.pop(job.id, None) is not None:
            self._finish(job, answer)

    def _decoded(self, answer: Any, at_engine: list[Job]) -> None:
        if isinstance(answer, OpError):
            for job in at_engine:
                self.cancel(job, answer)
            return
        if isinstance(answer, BaseException):
            raise answer
        result = sampling.decoded(answer[0])
        for request, tokens in result.streamed.items():
            streaming = self._held.get(request)
            if streaming is not None and streaming.stream is not None:
                streaming.streamed = True
                streaming.stream(tokens)
        outcomes: list[tuple[str, Outcome]] = [
            (request, bytes(body)) for request, body in zip(result.finished, answer[1], strict=True)
        ]
        outcomes += [(f.request, OpError(f.error, f.category)) for f in result.failed]
        for request, outcome in outcomes:
            over = self._held.pop(request, None)
            if over is not None:
                self._finish(over, outcome)
        if not result.unfinished:
            self._lost(at_engine)

    def _lost(self, at_engine: list[Job]) -> None:
        """Requests that the engine was given, and does not know: waiting would never end."""
        for job in at_engine:
            if self._held.pop(job.id, None) is not None:
                self._finish(job, OpError("The engine lost this request to sample.", "server"))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        name = job.target.name
        self._pending[name] -= 1
        if not self._pending[name]:
            del self._pending[name]
        self._loaded.use(name)
        try:
            job.finish(outcome)
        except Exception:
            self._log.exception("The end of request %s could not be told.", job.id)

    # Handing over

    async def _admit(self) -> list[Job]:
        """Take jobs from the line while the engine may hold more; their samplers are loaded."""
        new: list[Job] = []
        held: Counter[str] = Counter()
        for job in self._held.values():
            held[job.target.name] += job.samples

        now = time.monotonic()
        urgent = any(not job.yields_until for job in chain(self._held.values(), self._line))

        def fits(job: Job) -> bool:
            if urgent and job.yields_until > now:
                return False
            before = held[job.target.name]
            return not before or before + job.samples <= self._max_samples

        while (first := self._line.first(fits)) is not None:
            job = first
            if job.target.name not in self._loaded:
                if not await self._load(job.target):
                    break
                continue
            self._line.pop(job.target.name)
            self._loaded.use(job.target.name)
            self._held[job.id] = job
            held[job.target.name] += job.samples
            new.append(job)
        return new

    async def _load(self, target: Target) -> bool:
        """Load a sampler, or fail its jobs; False if there is no room until another gets idle."""
        if target.run is not None:
            self._park(target)
            return True
        if target.checkpoint and not await asyncio.to_thread(os.path.isdir, target.checkpoint):
            self._give_up(target.name, OpError("The checkpoint of this sampler was deleted."))
            return True
        if not self._make_room():
            return False
        # What is to be unloaded goes first: it may be this very name.
        for chore in list(self._chores):
            del self._chores[chore]
            await self._ask(chore)
        self.loading = target
        try:
            await self._ask(
                sampling.LoadSampler(
                    target.name, target.base_model, target.base_path, target.checkpoint
                )
            )
        except OpError as error:
            self._give_up(target.name, error)
        except EngineDied as error:
            if error.during:
                self._count_death(target.name)
            raise
        else:
            self._loaded.add(target)
        finally:
            self.loading = None
        return True

    def _park(self, target: Target) -> None:
        """Let the jobs of a copy wait while it is made again, which takes turns of training."""
        jobs = self._parked.setdefault(target.name, [])
        for job in self._line.of(target.name):
            self._line.remove(target.name, job)
            jobs.append(job)
        if target.name not in self._reviving:
            task = asyncio.get_running_loop().create_task(self._make_again(target))
            self._reviving[target.name] = task

    async def _make_again(self, target: Target) -> None:
        failure: OpError | None = None
        try:
            await self._revive(target)
        except OpError as error:
            failure = error
        except EngineDied:
            pass  # the jobs go back to the line, and try again
        except Exception as error:
            self._log.exception("The weights of a sampler could not be made again.")
            failure = OpError(f"The server failed: {type(error).__name__}: {error}", "server")
        else:
            self.adopt(target)
        del self._reviving[target.name]
        for job in self._parked.pop(target.name, []):
            if failure is not None:
                self._finish(job, failure)
            else:
                self._line.put(target.name, job)
        self._start()

    def _make_room(self) -> bool:
        """Whether one more sampler may be loaded; if need be, the least recently used goes."""
        if not self._loaded.full:
            return True
        busy = {job.target.name for job in self._held.values()}
        name = self._loaded.to_replace(busy, lambda name: self.pending(name) > 0)
        if name is not None:
            self.unload(name)
        return name is not None

    def _count_death(self, name: str) -> None:
        """Loading may be what the engine dies of."""
        for job in self._line.of(name):
            job.deaths += 1
            if job.deaths >= _DEATHS:
                self._line.remove(name, job)
                self._finish(job, engine_gone())

    def _give_up(self, name: str, reason: OpError) -> None:
        for job in self._line.of(name):
            self._line.remove(name, job)
            self._finish(job, reason)

    def _give_up_all(self, reason: OpError) -> None:
        parked = [job for jobs in self._parked.values() for job in jobs]
        for job in [*self._held.values(), *self._line, *parked]:
            self.cancel(job, reason)

    # The engine's life

    @property
    def _same_engine(self) -> bool:
        return self._engine.running and self._engine.generation == self._generation

    def _see_engine(self, why: str = "", *, guilty: bool = False) -> None:
        """Notice that the engine is another one: try again what can be, and fail the rest.

        `guilty`: it was sampling when it died.
        """
        if self._same_engine:
            return
        self._generation = self._engine.generation
        held, self._held = list(self._held.values()), {}
        self._loaded.clear()
        self._chores.clear()
        for job in reversed(held):
            job.deaths += guilty
            if job.deaths >= _DEATHS or job.streamed:
                self._finish(job, engine_gone(why))
            else:
                self._line.put_back(job.target.name, job)
