"""The requests to sample that are not over: in line, at the engine, or parked.

Knows nothing of what is asked of the engine, nor of how samplers are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..wire.ops import OpError
from .sample_jobs import Job, Outcome, engine_gone
from .waiting_line import WaitingLine

_DEATHS = 2  # of engines at a request, which is then given up


class OpenJobs:
    """Where each job is, until it is finished. `used` is told the sampler of each that is."""

    def __init__(self, used: Callable[[str], None], log: Any) -> None:
        self.line = WaitingLine[Job]()
        self.held: dict[str, Job] = {}  # at the engine, by their ids
        self._parked: dict[str, list[Job]] = {}  # by the name of their sampler, until it is there
        self._pending: dict[str, int] = {}  # how many, by the name of their sampler
        self._used = used
        self._log = log

    def all(self) -> list[Job]:
        parked = [job for jobs in self._parked.values() for job in jobs]
        return [*self.held.values(), *self.line, *parked]

    def pending(self, name: str) -> int:
        """Jobs of a sampler that are not finished."""
        return self._pending.get(name, 0)

    def put(self, job: Job) -> None:
        self._pending[job.target.name] = self._pending.get(job.target.name, 0) + 1
        self.line.put(job.target.name, job)

    def hand_over(self, name: str) -> Job:
        """Take a sampler's first out of the line, for the engine."""
        job = self.line.pop(name)
        self.held[job.id] = job
        return job

    def withdraw(self, job: Job) -> bool:
        """Take a job that is not at the engine out of where it is; whether it was there."""
        parked = self._parked.get(job.target.name, [])
        if job in parked:
            parked.remove(job)
            return True
        return self.line.remove(job.target.name, job)

    def park(self, name: str) -> None:
        """Let the jobs of a sampler wait outside the line."""
        jobs = self._parked.setdefault(name, [])
        for job in self.line.of(name):
            self.line.remove(name, job)
            jobs.append(job)

    def unpark(self, name: str, failure: OpError | None) -> None:
        """Put a sampler's parked jobs in line again, or fail them."""
        jobs = self._parked.pop(name, [])
        if failure is None:
            for job in reversed(jobs):  # they came before those in line
                self.line.put_back(name, job)
        else:
            for job in jobs:
                self.finish(job, failure)

    # Endings

    def finish(self, job: Job, outcome: Outcome) -> None:
        """Say what became of a job, which was taken out of where it was."""
        name = job.target.name
        self._pending[name] -= 1
        if not self._pending[name]:
            del self._pending[name]
        self._used(name)
        try:
            job.finish(outcome)
        except Exception:
            self._log.exception("The end of request %s could not be told.", job.id)

    def finish_held(self, job_id: str, outcome: Outcome) -> None:
        """Say what became of a job at the engine; of one that was cancelled nothing is said."""
        job = self.held.pop(job_id, None)
        if job is not None:
            self.finish(job, outcome)

    def give_up(self, name: str, reason: OpError) -> None:
        """Fail what waits in line for a sampler."""
        for job in self.line.of(name):
            self.line.remove(name, job)
            self.finish(job, reason)

    # Deaths of the engine

    def count_death(self, name: str) -> None:
        """Of an engine that was loading a sampler, which may be what it died of."""
        for job in self.line.of(name):
            job.deadly_loads += 1
            if job.deadly_loads >= _DEATHS:
                self.line.remove(name, job)
                self.finish(job, engine_gone())

    def take_back(self, why: str, *, guilty: bool) -> None:
        """The engine is gone: what it held is tried again if it can be, and else fails.

        `guilty`: it was sampling when it died.
        """
        held, self.held = list(self.held.values()), {}
        for job in reversed(held):
            job.deaths += guilty
            if job.deaths >= _DEATHS or job.streamed:
                self.finish(job, engine_gone(why))
            else:
                self.line.put_back(job.target.name, job)
