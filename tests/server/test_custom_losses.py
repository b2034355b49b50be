"""A custom loss that is being made outlives the engine and the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from jupyter_tinker.server.schema import CustomLossRow
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops, tinker
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import SESSION, add_session, make_service, read

BODY = json.dumps({"session_id": SESSION, "custom_loss_seq_id": 3}).encode()
ADDRESS = tinker.CustomLossAddress(session_id=SESSION, custom_loss_seq_id=3)


async def result(service: TinkerService, request_id: str) -> dict[str, Any]:
    found = await service.futures.poll(request_id, 5.0)
    assert found is not None
    return read(found)


def losses(service: TinkerService) -> list[str]:
    return service._database.run(lambda db: list(db.scalars(select(CustomLossRow.id))))


async def life(folder: Path, tell: Callable[[TinkerService, FakeEngine], Any]) -> Any:
    engine = FakeEngine()
    service = make_service(folder, engine)
    add_session(service._database)
    service.start("here")
    try:
        return await tell(service, engine)
    finally:
        await service.stop()


def test_a_loss_is_made_once(tmp_path: Path) -> None:
    async def tell(service: TinkerService, engine: FakeEngine) -> None:
        ids = [await service.create_custom_loss(ADDRESS, BODY) for _ in range(2)]
        assert ids[0] == ids[1]
        assert (await result(service, ids[0]))["loss_id"] == f"{SESSION}:loss:3"
        assert losses(service) == [f"{SESSION}:loss:3"]
        assert engine.count(ops.CheckCustomLoss) == 1

    asyncio.run(life(tmp_path, tell))


@pytest.mark.parametrize("stored", [False, True])
def test_a_loss_that_was_being_made_is_made_by_the_next_server(
    tmp_path: Path, stored: bool
) -> None:
    async def before(service: TinkerService, engine: FakeEngine) -> str:
        engine.trains.clear()
        request_id = await service.create_custom_loss(ADDRESS, BODY)
        if stored:  # and the server died before it could say so
            row = CustomLossRow(
                id=f"{SESSION}:loss:3", session_id=SESSION, definition=BODY, created_at=1.0
            )
            service._database.run(lambda db: db.add(row))
        return request_id

    async def after(service: TinkerService, engine: FakeEngine) -> None:
        assert (await result(service, request_id))["loss_id"] == f"{SESSION}:loss:3"
        assert losses(service) == [f"{SESSION}:loss:3"]

    request_id = asyncio.run(life(tmp_path, before))
    asyncio.run(life(tmp_path, after))


def test_an_engine_that_dies_meanwhile_costs_time(tmp_path: Path) -> None:
    async def tell(service: TinkerService, engine: FakeEngine) -> None:
        engine.after = lambda op: engine.die() if engine.generation == 1 else None
        request_id = await service.create_custom_loss(ADDRESS, BODY)
        assert (await result(service, request_id))["loss_id"] == f"{SESSION}:loss:3"
        assert engine.generation == 2

    asyncio.run(life(tmp_path, tell))


def test_a_loss_that_engines_die_of_fails(tmp_path: Path) -> None:
    async def tell(service: TinkerService, engine: FakeEngine) -> None:
        engine.before = lambda op: engine.die()
        request_id = await service.create_custom_loss(ADDRESS, BODY)
        failed = await result(service, request_id)
        assert failed["category"] == "server"
        assert "died" in failed["error"]
        assert engine.generation == 2

    asyncio.run(life(tmp_path, tell))
