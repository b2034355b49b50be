"""A pump on a fake engine, and what becomes of its jobs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_tinker.server.pump import Pump
from jupyter_tinker.server.sample_jobs import Job, Outcome
from jupyter_tinker.server.samplers import Target
from jupyter_tinker.server.turns import Turns
from jupyter_tinker.wire import sampling
from jupyter_tinker.wire.ops import OpError
from tests.server.fake_engine import FakeEngine, tokens_of


class Stage:
    """A pump on a fake engine, and what became of its jobs."""

    def __init__(self, *, max_samples: int = 100, max_loaded: int = 10, share: float = 0.5) -> None:
        self.engine = FakeEngine()
        self.turns = Turns(share)
        self.pump = Pump(
            self.engine,
            self.turns,
            max_samples=max_samples,
            max_loaded=max_loaded,
            revive=self._revive,
            log=logging.getLogger("test"),
        )
        self.revivals: list[str] = []
        self.revive: Callable[[Target], None] = lambda target: None  # may raise
        self.may_revive = asyncio.Event()
        self.may_revive.set()
        self.outcomes: dict[str, Outcome] = {}
        self.order: list[str] = []
        self._count = 0

    async def _revive(self, target: Target) -> None:
        assert target.run is not None
        self.revivals.append(target.name)
        await self.may_revive.wait()
        self.revive(target)
        await self.engine.request(sampling.SnapshotSampler(target.name, target.run))

    async def make_copy(self, target: Target) -> None:
        """As a run does."""
        assert target.run is not None
        await self.engine.request(sampling.SnapshotSampler(target.name, target.run))
        self.pump.adopt(target)

    def put(
        self,
        target: str | Target = "base",
        *,
        prompt: int = 10,
        max_tokens: int = 3,
        samples: int = 1,
        stream: Callable[[list[list[int]]], None] | None = None,
    ) -> Job:
        self._count += 1
        name = f"j{self._count}"
        if isinstance(target, str):
            target = Target(target, "tiny", "/models/tiny")
        body = {
            "prompt": {"chunks": [{"tokens": [prompt]}]},
            "num_samples": samples,
            "sampling_params": {"max_tokens": max_tokens},
        }

        def finish(outcome: Outcome) -> None:
            assert name not in self.outcomes, "a job was finished twice"
            self.outcomes[name] = outcome
            self.order.append(name)

        job = Job(name, target, json.dumps(body).encode(), samples, finish, stream)
        self.pump.put(job)
        return job

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():  # noqa: ASYNC110 (what is waited for has no event)
                await asyncio.sleep(0.001)

    async def all_done(self) -> None:
        await self.until(lambda: len(self.outcomes) == self._count)

    def error(self, job: Job) -> OpError:
        outcome = self.outcomes[job.id]
        assert isinstance(outcome, OpError), outcome
        return outcome

    def tokens(self, job: Job) -> list[int]:
        outcome = self.outcomes[job.id]
        assert isinstance(outcome, bytes), outcome
        return tokens_of(outcome)


def story(tell: Callable[[Stage], Awaitable[Any]], **options: Any) -> Stage:
    async def whole() -> Stage:
        stage = Stage(**options)
        try:
            await tell(stage)
        finally:
            await stage.pump.close()
        return stage

    return asyncio.run(asyncio.wait_for(whole(), 60))


def copy(name: str = "copy", run: str = "run") -> Target:
    return Target(name, "tiny", "/models/tiny", run=run)
