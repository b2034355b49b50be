"""A service on an engine whose losses follow the learning rates, and who sweeps over its runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jupyter_tinker.server.schema import EventRow
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.lr_find import SweepSettings
from tests.server.fake_engine import FakeEngine
from tests.server.fake_runs import FakeRuns
from tests.server.one_service import RUN, Client, add_session, make_service

SETTINGS = SweepSettings()
WEIGHT = 2.0


class Landscape(FakeRuns):
    """A copy's loss falls by 0.1 at each step with a learning rate around 1e-3, and trebles at each
    one above 0.1. A batch is as hard as its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[str, float] = {}
        self.start = 4.0
        self.weight = WEIGHT

    def _forward_backward(self, op: ops.ForwardBackward) -> Any:
        result, buffers = super()._forward_backward(op)
        if "@" in op.run:
            hard = _first_token(pb.ForwardBackwardRequest.FromString(op.body))
            loss = (self.losses.setdefault(op.run, self.start) + hard) * WEIGHT
            finite = loss if math.isfinite(loss) else None
            result = {**result, "loss_sum": finite, "weight_sum": self.weight}
        return result, buffers

    def _optim_step(self, op: ops.OptimStep) -> Any:
        if "@" in op.run:
            rate = op.adam.learning_rate
            if 3e-4 < rate < 3e-3:
                self.losses[op.run] -= 0.1
            elif rate > 0.1:
                self.losses[op.run] *= 3
        return super()._optim_step(op)


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine()
    made.runs = Landscape()
    return made


@pytest.fixture
def service(tmp_path: Path, engine: FakeEngine, jp_asyncio_loop: Any) -> Iterator[TinkerService]:
    made = make_service(tmp_path, engine)
    add_session(made._database)

    async def start() -> None:
        made.start("here")

    jp_asyncio_loop.run_until_complete(start())
    yield made
    jp_asyncio_loop.run_until_complete(made.stop())


@pytest.fixture
def client(service: TinkerService, jp_asyncio_loop: Any) -> Client:
    """Of a run that has made three steps."""
    made = Client(service)
    jp_asyncio_loop.run_until_complete(three_steps(made))
    return made


async def three_steps(client: Client) -> None:
    await client.create()
    for n in range(3):
        await client.step(n, learning_rate=0.01, beta1=0.8, grad_clip_norm=0.5)


def copies(engine: FakeEngine) -> list[str]:
    """What the engine holds beside runs of clients."""
    return [name for name in engine.runs.states if "@" in name]


def of_copies(engine: FakeEngine, kind: type[Any]) -> list[Any]:
    return [op for op in engine.ops if isinstance(op, kind) and "@" in op.run]


def requests(engine: FakeEngine) -> list[pb.ForwardBackwardRequest]:
    made = of_copies(engine, ops.ForwardBackward)
    return [pb.ForwardBackwardRequest.FromString(op.body) for op in made]


def _first_token(request: pb.ForwardBackwardRequest) -> int:
    return int(np.frombuffer(request.data[0].model_input[0].encoded_text.tokens, "<i4")[0])


def first_tokens(engine: FakeEngine) -> list[int]:
    return [_first_token(request) for request in requests(engine)]


async def finished(service: TinkerService, run: str = RUN) -> dict[str, Any]:
    sweep = service.lr_finder._sweeps[run].task
    assert sweep is not None
    await asyncio.wait_for(sweep, 10)
    return await service.lr_finder.state(run)


async def sweep(service: TinkerService, **settings: Any) -> dict[str, Any]:
    await service.lr_finder.begin(RUN, SweepSettings(**settings), by="ada")
    return await finished(service)


def events(service: TinkerService, *kinds: str) -> list[EventRow]:
    rows = service._database.run(lambda db: db.query(EventRow).order_by(EventRow.id).all())
    return [row for row in rows if row.kind in kinds]


async def at_step(engine: FakeEngine, count: int) -> None:
    """Wait until a copy has made so many steps."""
    await until(lambda: len(of_copies(engine, ops.OptimStep)) >= count)


async def until(said: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not said():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0)
