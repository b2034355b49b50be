"""A disk that is full for a while costs time, also if the engine dies meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from jupyter_tinker.server import backlog as backlog_module
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.wire import tinker
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import (
    RUN,
    SESSION,
    Asked,
    Client,
    add_session,
    ask,
    create,
    forward_backward,
    make_service,
)


class Full(Database):
    """Takes what is asked, and, while it is full, no results."""

    full = False

    async def call(self, work: Any) -> Any:
        if self.full and isinstance(work, partial) and work.func is backlog_module._do:
            raise OperationalError("", None, Exception("database or disk is full"))
        return await super().call(work)


class Unwritable(Database):
    """Can be read, and, while it is full, not written, whatever it is that is to be written."""

    full = False
    refused = 0

    def open(self) -> Engine:
        known = self._engine
        engine = super().open()
        if engine is not known:
            event.listen(engine, "before_cursor_execute", self._look)
        return engine

    def _look(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if self.full and statement.startswith(("INSERT", "UPDATE", "DELETE")):
            self.refused += 1
            raise OperationalError(statement, None, Exception("database or disk is full"))


class Place:
    """A service whose disk is full while it does what it has accepted."""

    def __init__(self, folder: Path) -> None:
        self.database, self.engine = Unwritable(default_url(folder)), FakeEngine()
        add_session(self.database)
        self.service = make_service(folder, self.engine, self.database)
        self.client = Client(self.service)

    async def during(self, request_id: str, *, stored: bool = False, dies: bool = False) -> Any:
        """Let the engine do a request, which was accepted while it did nothing; its result. It may
        not be over until it is `stored`."""
        await asyncio.sleep(0.05)
        self.database.full, self.database.refused = True, 0
        if dies:
            self.engine.die()
        self.engine.trains.set()
        while not self.database.refused:  # noqa: ASYNC110 (a thread counts them)
            await asyncio.sleep(0.01)
        if stored:
            assert await self.client.pending(request_id)
        self.database.full = False
        return await self.client.result(request_id)


def tell(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    story: Callable[[Place], Coroutine[Any, Any, None]],
) -> None:
    monkeypatch.setattr(backlog_module, "_RETRY_SECONDS", 0.01)

    async def whole() -> None:
        place = Place(folder)
        place.service.start("here")
        await story(place)
        await place.service.stop()

    asyncio.run(asyncio.wait_for(whole(), 20))


def test_a_run_that_is_made_meanwhile_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(place: Place) -> None:
        place.engine.trains.clear()
        assert "error" not in await place.during(await create(place.service))
        assert (await place.client.step(1))["optimizer_step"] == 1
        await place.service.futures.stored()
        row = await place.service.run_store.run(RUN)
        assert row is not None
        assert (row.ended, row.lora["rank"]) == (None, 4)

    tell(tmp_path, monkeypatch, story)


@pytest.mark.parametrize(
    "save",
    [
        ask("save_weights", path="a"),
        ask("save_weights_for_sampler", path="a"),
        ask("save_weights_for_sampler", sampling_session_seq_id=0),
    ],
)
def test_a_save_is_done_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Asked
) -> None:
    async def story(place: Place) -> None:
        await place.client.create()
        await place.client.step(1)
        place.engine.trains.clear()
        told = await place.during(await place.client.submit(save), stored=True)
        assert "error" not in told
        if told["type"] == "save_weights":
            load = ask("load_weights", path=told["path"], optimizer=True)
            assert "error" not in await place.client.ask(load)

    tell(tmp_path, monkeypatch, story)


def test_a_run_comes_back_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(place: Place) -> None:
        await place.client.create()
        await place.client.step(1)
        await place.service.futures.stored()
        place.engine.trains.clear()
        batch = await place.client.submit(forward_backward(2))
        assert "error" not in await place.during(batch, dies=True)
        await place.service.futures.stored()
        kinds = [e.kind for e in await place.service.run_store.run_events(RUN, 0, 100)]
        assert "run_revived" in kinds

    tell(tmp_path, monkeypatch, story)


def test_a_loss_is_known_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(place: Place) -> None:
        place.engine.trains.clear()
        body = {"session_id": SESSION, "custom_loss_seq_id": 1}
        address = tinker.CustomLossAddress(**body)
        request_id = await place.service.create_custom_loss(address, json.dumps(body).encode())
        assert "loss_id" in await place.during(request_id, stored=True)

    tell(tmp_path, monkeypatch, story)


def test_who_waits_for_the_database_is_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(backlog_module, "_RETRY_SECONDS", 0.01)

    async def fails() -> None:
        raise OperationalError("", None, Exception("database or disk is full"))

    with pytest.raises(OperationalError):
        asyncio.run(backlog_module.patiently(fails))


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
