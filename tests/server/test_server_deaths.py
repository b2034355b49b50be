"""A request that the server itself dies of, with its engine, fails alone and only once known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server import suspects
from jupyter_tinker.server.database import default_url
from jupyter_tinker.server.schema import RequestRow
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from tests.server.fake_engine import FakeEngine
from tests.server.lives import Mortal
from tests.server.one_service import SESSION, Client, add_session, forward_backward, make_service

RUNS = [f"{SESSION}:train:{number}" for number in range(4)]
DEADLY = 77  # the seed of a batch

Deed = Callable[[TinkerService, FakeEngine], Awaitable[Any]]


def deadly(op: ops.Op) -> bool:
    body = forward_backward(DEADLY)(RUNS[1], 3)[1]
    return isinstance(op, ops.ForwardBackward) and op.body == body


def live(folder: Path, deed: Deed, kills: Callable[[ops.Op], bool] = deadly) -> Any:
    """One life of a server; what the deed returns, or None where the life ended before that."""

    async def whole() -> Any:
        over, engine = asyncio.Event(), FakeEngine()

        def point(_: str) -> None:
            if over.is_set():
                raise asyncio.CancelledError  # as if the process were gone

        def before(op: ops.Op) -> None:
            if kills(op):
                over.set()
                raise asyncio.CancelledError

        engine.before = before
        database = Mortal(default_url(folder), point)
        add_session(database)
        service = make_service(folder, engine, database)
        service.start("here")
        done = asyncio.ensure_future(deed(service, engine))
        end = asyncio.create_task(over.wait())
        await asyncio.wait([done, end], return_when=asyncio.FIRST_COMPLETED)
        if over.is_set():
            service._lock.release()  # as the end of its process does
            return None
        await service.stop()
        return done.result()

    return asyncio.run(asyncio.wait_for(whole(), 20))


def clients(service: TinkerService, seq_id: int) -> list[Client]:
    made = [Client(service, run) for run in RUNS]
    for client in made:
        client.seq_id = seq_id
    return made


async def wait(service: TinkerService, engine: FakeEngine) -> None:
    await asyncio.sleep(20)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_it_fails_alone_at_last(tmp_path: Path, first: int) -> None:
    ids: list[str] = []

    async def begin(service: TinkerService, engine: FakeEngine) -> None:
        made = clients(service, 0)
        for number, client in enumerate(made):
            await client.create(number)
            await client.step(number)
        await service.futures.stored()
        engine.trains.clear()
        for number in [*range(first, 4), *range(first)]:
            ids.append(await made[number].submit(forward_backward(DEADLY)))
        engine.trains.set()
        await asyncio.sleep(20)

    async def go_on(service: TinkerService, engine: FakeEngine) -> list[Any]:
        made = clients(service, 3)
        ordered = dict(zip([*range(first, 4), *range(first)], ids, strict=True))
        told = [await made[n].result(ordered[n]) for n in range(4)]
        assert "error" not in await made[1].ask(forward_backward(1))
        return told

    assert live(tmp_path, begin) is None
    for _ in range(suspects._DEATHS):
        assert live(tmp_path, wait) is None
    told = live(tmp_path, go_on)
    assert f"ended {suspects._DEATHS + 1} times" in told[1]["error"]
    assert [number for number in range(4) if "error" in told[number]] == [1]


def test_a_server_that_stops_in_its_own_time_did_not_die(tmp_path: Path) -> None:
    ids: list[str] = []

    async def begin(service: TinkerService, engine: FakeEngine) -> bool:
        client = Client(service, RUNS[1])
        await client.create(1)
        await client.step(1)
        engine.trains.clear()
        ids.append(await client.submit(forward_backward(2)))
        return True

    async def be_at_it(service: TinkerService, engine: FakeEngine) -> bool:
        def before(op: ops.Op) -> None:
            if isinstance(op, ops.OptimStep):  # the last that is replayed
                engine.trains.clear()

        engine.before = before
        assert await deaths(service) == 0
        while not await deaths(service):  # noqa: ASYNC110 (the database sets no event)
            await asyncio.sleep(0.01)
        return True

    async def deaths(service: TinkerService) -> int:
        row = await service._database.call(lambda db: db.get(RequestRow, ids[0]))
        assert row.done_at is None
        return int(row.deaths)

    async def end(service: TinkerService, engine: FakeEngine) -> Any:
        return await Client(service, RUNS[1]).result(ids[0])

    def nothing(_: ops.Op) -> bool:
        return False

    assert live(tmp_path, begin, nothing)
    for _ in range(3):
        assert live(tmp_path, be_at_it, nothing)
    assert "error" not in live(tmp_path, end, nothing)
