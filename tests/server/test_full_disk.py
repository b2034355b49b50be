"""A disk that is full for a while costs time, also if the engine dies meanwhile."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from jupyter_tinker.server import backlog as backlog_module
from jupyter_tinker.server.database import Database, default_url
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Client, add_session, forward_backward, make_service


class Full(Database):
    """Takes what is asked, and, while it is full, no results."""

    full = False

    async def call(self, work: Any) -> Any:
        if self.full and isinstance(work, partial) and work.func is backlog_module._do:
            raise OperationalError("", None, Exception("database or disk is full"))
        return await super().call(work)


@pytest.mark.parametrize("dies", [False, True])
def test_steps_are_done_and_stored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    monkeypatch.setattr(backlog_module, "_RETRY_SECONDS", 0.01)

    async def story(folder: Path, *, full: bool) -> Any:
        database, engine = Full(default_url(folder)), FakeEngine()
        add_session(database)
        service = make_service(folder, engine, database)
        service.start("here")
        client = Client(service)
        await client.create()
        await client.step(1)
        database.full = full
        told = [await client.step(n) for n in (2, 3)]  # results are handed out
        if full and dies:
            engine.die()
        waits = await client.submit(forward_backward(4))
        if full:
            assert dies == await client.pending(waits)
        database.full = False
        told.append(await client.result(waits))
        state = engine.runs.states[RUN]
        await service.stop()
        return told, state

    quiet = asyncio.run(story(tmp_path / "quiet", full=False))
    assert asyncio.run(story(tmp_path / "full", full=True)) == quiet


def test_what_a_snapshot_is_of_is_stored_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "_RETRY_SECONDS", 0.01)

    async def story() -> None:
        database, engine = Full(default_url(tmp_path)), FakeEngine()
        add_session(database)
        service = make_service(tmp_path, engine, database)
        service.start("here")
        client = Client(service)
        await client.create()
        database.full = True
        for n in range(8):
            await client.step(n)
        await asyncio.sleep(0.05)
        place = await service.history.place(RUN)
        snapshots = await service.history.snapshots(RUN)
        assert place.last <= 1
        assert all(row.position <= place.last for row in snapshots)
        database.full = False
        await service.stop()
        newest = (await stored(tmp_path))[-1]
        assert newest.position == 17

    async def stored(folder: Path) -> Any:
        service = make_service(folder, FakeEngine())
        return await service.history.snapshots(RUN)

    asyncio.run(story())
