"""What is done again stays bounded by the snapshots, however short the lives are."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jupyter_tinker.server import snapshots
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import Client, add_session, make_service

STEPS = 3  # of each life
INTERVAL = 7  # steps, until a snapshot is due
_SECONDS = 2.0  # that a step of the fake engine says it took
_COST = 0.06  # seconds, that a snapshot of the fake engine says it took


async def begin(folder: Path, engine: FakeEngine) -> TinkerService:
    service = make_service(folder, engine, snapshot_overhead=_COST / (INTERVAL * _SECONDS))
    add_session(service._database)
    service.start("here")
    return service


async def written(service: TinkerService) -> None:
    """Let the snapshots that were begun be kept."""
    await service.futures.stored()
    await asyncio.gather(*service.snapshots._writing.values())


@pytest.fixture(autouse=True)
def the_first_guess_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_BYTES_PER_SECOND", 1000 * 12 / _COST)


@pytest.mark.parametrize("killed", ["server", "engine"])
def test_lives_that_are_shorter_than_the_interval(tmp_path: Path, killed: str) -> None:
    replayed: list[int] = []

    async def live(number: int) -> None:
        engine = FakeEngine()
        service = await begin(tmp_path, engine)
        client = Client(service)
        if number == 0:
            await client.create()
        client.seq_id = number * STEPS * 2
        for n in range(STEPS):
            await client.step(n)
        await written(service)
        replayed.append(engine.count(ops.OptimStep) - STEPS)
        service._lock.release()  # as the end of its process does
        await service._database.close()

    async def live_on() -> None:
        engine = FakeEngine()
        service = await begin(tmp_path, engine)
        client = Client(service)
        await client.create()
        for number in range(10 * STEPS):
            before = engine.count(ops.OptimStep)
            if number % STEPS == 0:
                engine.die()
            await client.step(number)
            await written(service)
            replayed.append(engine.count(ops.OptimStep) - before - 1)
        taken = engine.count(ops.SnapshotRun)
        assert taken <= 10 * STEPS / INTERVAL + 1, "what is done again is not counted twice"
        await service.stop()

    if killed == "engine":
        asyncio.run(live_on())
    else:
        for number in range(10):
            asyncio.run(live(number))
    assert 3 < max(replayed) <= INTERVAL, replayed
