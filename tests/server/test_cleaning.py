"""What may be dropped beside a server whose runs live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from jupyter_tinker.server import cleaning as module
from jupyter_tinker.server.retention import Size, sizes
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import (
    RUN,
    SESSION,
    Client,
    add_session,
    forward_backward,
    make_service,
)


def _tell(folder: Path, story: Callable[[Client], Awaitable[None]]) -> None:
    """To a run that has made a step."""

    async def whole() -> None:
        service = make_service(folder, FakeEngine())
        add_session(service._database)
        service.start("here")
        client = Client(service)
        await client.create()
        await client.step(1)
        await service.futures.stored()
        await story(client)
        await service.stop()

    asyncio.run(asyncio.wait_for(whole(), 15))


async def _drop(client: Client, *, dry_run: bool = False) -> list[Size]:
    return await client.service.cleaning.drop_unused(time.time() + 1, by="ada", dry_run=dry_run)


async def _forget(client: Client) -> None:
    """Free the run's memory in the engine."""
    run = await client.service.run(RUN)
    async with run.lock:
        await client.service.lives.unload(run)


def test_what_the_engine_holds_is_left_alone(tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        assert await _drop(client) == []
        await client.step(2)

    _tell(tmp_path, story)


def test_a_run_whose_client_is_there_is_left_alone(tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        await _forget(client)
        client.service.session_index.heard_of(SESSION)
        assert await _drop(client) == []
        await client.step(2)

    _tell(tmp_path, story)


def test_a_run_that_is_worked_on_is_left_alone(tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        await _forget(client)
        run = await client.service.run(RUN)
        async with run.lock:
            assert await _drop(client) == []

    _tell(tmp_path, story)


def test_the_quota_waits_for_what_a_run_is_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(client: Client) -> None:
        for n in range(3):
            await client.step(n)
        await _forget(client)  # with a snapshot, so that there is a past
        cleaning, run = client.service.cleaning, await client.service.run(RUN)

        async def total() -> int:
            found = await client.service._database.call(sizes)
            return sum(size.total for size in found)

        before = await total()
        async with run.lock:
            monkeypatch.setattr(module, "_PATIENCE", 0.01)
            await cleaning.keep_within(0)
            assert await total() == before
            monkeypatch.setattr(module, "_PATIENCE", 10.0)
            waits = asyncio.create_task(cleaning.keep_within(0))
            await asyncio.sleep(0.05)
            assert await total() == before
        await waits
        assert await total() < before
        await client.step(9)

    _tell(tmp_path, story)


def test_what_nobody_uses_goes_and_its_run_has_ended(tmp_path: Path) -> None:
    async def story(client: Client) -> None:
        await _forget(client)
        (would,) = await _drop(client, dry_run=True)
        assert would.run_id == RUN
        assert list((tmp_path / "snapshots").glob("*/*.safetensors"))
        assert await _drop(client) == [would]
        assert not list((tmp_path / "snapshots").glob("*/*.safetensors"))
        assert "was dropped" in (await client.ask(forward_backward(2)))["error"]
        row = await client.service.run_store.run(RUN)
        assert row is not None
        assert row.ended == (await client.service.run(RUN)).ended

    _tell(tmp_path, story)
