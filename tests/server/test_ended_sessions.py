"""Runs end with their sessions, also where the server ended in between."""

from __future__ import annotations

import asyncio
from pathlib import Path

from jupyter_tinker.server.schema import RunRow
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, SESSION, Client, add_session, make_service


def test_a_run_whose_session_ended_with_the_server_ends_in_its_next_life(tmp_path: Path) -> None:
    first = make_service(tmp_path, FakeEngine())
    add_session(first._database)

    async def an_earlier_life() -> None:
        first.start("here")
        await Client(first).create()
        await first.run_store.finish_session(SESSION, "success", None)  # and no further
        await first.stop()

    async def the_next_life() -> str | None:
        service = make_service(tmp_path, FakeEngine())
        service.start("here")
        while (await service.run(RUN)).ended is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await service.stop()
        row = service._database.run(lambda db: db.get_one(RunRow, RUN))
        return row.ended

    asyncio.run(an_earlier_life())
    assert (
        asyncio.run(asyncio.wait_for(the_next_life(), 20)) == f"The session of run {RUN} has ended."
    )
