"""A run on a fake engine, its client, and somebody who steers it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jupyter_tinker.server.runs import Run
from jupyter_tinker.server.schema import EventRow, StepRow
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.controls import parse_change
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Client, add_session, make_service


class Stage(Client):
    """A run, its client, and somebody who steers it."""

    def __init__(self, folder: Path) -> None:
        self.engine = FakeEngine()
        super().__init__(make_service(folder, self.engine))
        add_session(self.service._database)

    async def begin(self) -> None:
        self.service.start("here")
        await self.create()

    @property
    def state(self) -> Any:
        """Of the run in the engine."""
        return self.engine.runs.states[RUN]

    async def the_run(self) -> Run:
        return await self.service.run(RUN)

    async def steer(self, **change: Any) -> Run:
        return await self.service.steering.change(RUN, parse_change(change), by="ada")

    async def rewind(self, step: int, branch: int | None = None) -> Run:
        return await self.service.steering.rewind(RUN, step, branch, by="ada")

    async def fork(self, step: int, branch: int | None = None) -> str:
        return str(await self.service.steering.fork(RUN, step, branch, by="ada"))

    async def rows(self) -> list[StepRow]:
        return await self.service.run_store.steps(RUN, 0, 1000)

    async def events(self, *kinds: str) -> list[EventRow]:
        await self.service.futures.stored()
        query = select(EventRow).where(EventRow.kind.in_(kinds)).order_by(EventRow.id)
        return await self.service._database.call(lambda db: list(db.scalars(query)))

    def learning_rates(self) -> list[float]:
        return [op.adam.learning_rate for op in self.engine.ops if isinstance(op, ops.OptimStep)]


def story(tell: Callable[[Stage], Awaitable[None]], folder: Path) -> Stage:
    async def whole() -> Stage:
        stage = Stage(folder)
        await stage.begin()
        try:
            await tell(stage)
        finally:
            await stage.service.stop()
        return stage

    return asyncio.run(asyncio.wait_for(whole(), 15))
