"""Results are stored before they are handed out, and kept for a while; payloads with their runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from jupyter_tinker.server import backlog as backlog_module
from jupyter_tinker.server.backlog import Backlog
from jupyter_tinker.server.database import Database
from jupyter_tinker.server.futures import (
    ExpiredFuture,
    Futures,
    Request,
    UnknownFuture,
    failure,
    success,
)
from jupyter_tinker.server.journal import Journal
from jupyter_tinker.server.schema import OperationRow, PayloadRow, RequestRow


def _request(number: int = 1) -> Request:
    return Request(f"r{number}", "s:train:0", number, "optim_step", b"payload")


def _futures(database: Database, life: str = "now") -> Futures:
    return Futures(Journal(database, life), Backlog(database))


async def _accepted(futures: Futures) -> Request:
    """A request that is pending."""
    request = _request()
    await futures.accept(request)
    futures.open(request)
    return request


def _payload(database: Database, request_id: str = "r1") -> bytes | None:
    row = database.run(lambda db: db.get(PayloadRow, request_id))
    return None if row is None else row.body


def test_a_result_is_kept_until_a_while_after_it_was_fetched(database: Database) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = _request()
        assert await futures.accept(request) == "r1"
        futures.open(request)
        assert await futures.poll("r1", hold=0.01) is None
        futures.complete(request, success({"metrics": {}}))
        await futures.stored()
        forgetful = _futures(database)  # has nothing in memory
        forgetful.resumed.set()
        await forgetful.tidy(keep_seconds=0.0)
        assert await forgetful.poll("r1", hold=0) == success({"metrics": {}})
        await forgetful.tidy(keep_seconds=60.0)
        assert await forgetful.poll("r1", hold=0) is not None
        await asyncio.sleep(0.01)
        await forgetful.tidy(keep_seconds=0.0)
        with pytest.raises(ExpiredFuture):
            await forgetful.poll("r1", hold=0)
        with pytest.raises(UnknownFuture):
            await forgetful.poll("r2", hold=0)
        await database.close()

    asyncio.run(story())


def test_a_result_that_nobody_fetches_is_not_kept_for_good(database: Database) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = await _accepted(futures)
        futures.complete(request, success({"metrics": {}}))
        await futures.stored()
        later = _futures(database, "later")
        later.resumed.set()
        await later.tidy(keep_seconds=0.0, unfetched_seconds=60.0)
        assert (await later._journal.future("r1")).result is not None  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
        await later.tidy(keep_seconds=60.0, unfetched_seconds=0.0)
        with pytest.raises(ExpiredFuture):
            await later.poll("r1", hold=0)
        await database.close()

    asyncio.run(story())


def test_what_was_fetched_is_known_although_it_could_not_be_written_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = await _accepted(futures)
        futures.complete(request, success({"metrics": {}}))
        assert await futures.poll("r1", hold=1.0) is not None
        await futures.stored()
        with monkeypatch.context() as full:

            async def fail(_: Any) -> None:
                raise OperationalError("", None, Exception("database or disk is full"))

            full.setattr(futures._journal, "mark_retrieved", fail)
            with pytest.raises(OperationalError):
                await futures.tidy(keep_seconds=0.0)
        await futures.tidy(keep_seconds=60.0)
        row = database.run(lambda db: db.get(RequestRow, "r1"))
        assert row is not None
        assert row.retrieved_at is not None
        await database.close()

    asyncio.run(story())


def _operation(request_id: str | None) -> OperationRow:
    return OperationRow(
        run_id="s:train:0",
        position=1,
        kind="forward_backward",
        step=0,
        request_id=request_id,
        data={},
        time=1.0,
    )


@pytest.mark.parametrize(
    ("operation", "kept"), [(None, False), (_operation(None), False), (_operation("r1"), True)]
)
def test_a_payload_goes_with_its_request_unless_its_run_was_made_of_it(
    database: Database, operation: OperationRow | None, kept: bool
) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = _request()
        await futures.accept(request)
        assert _payload(database) == b"payload"
        futures.complete(request, success({}), operation=operation)
        await futures.stored()
        assert _payload(database) == (b"payload" if kept else None)
        await database.close()

    asyncio.run(story())


def test_a_result_is_handed_out_once_it_is_stored(database: Database) -> None:
    async def story() -> None:
        futures = _futures(database)
        request = await _accepted(futures)
        futures.complete(request, success({}))
        assert not request.done.done()
        assert await futures.poll("r1", hold=5) == success({})
        stored = await Journal(database, "other").future("r1")
        assert stored is not None
        assert stored.result == success({})
        await database.close()

    asyncio.run(story())


def test_what_an_earlier_life_left_pending_is_waited_for(database: Database) -> None:
    async def story() -> None:
        await _futures(database, "before").accept(_request())
        futures = _futures(database)
        polls = asyncio.create_task(futures.poll("r1", hold=5))
        await asyncio.sleep(0.01)
        assert not polls.done()
        again = _request()
        futures.open(again)
        futures.resumed.set()
        await asyncio.sleep(0.01)
        assert await futures.poll("r1", hold=0.01) is None
        futures.complete(again, success({"it": "went on"}))
        assert await polls == success({"it": "went on"})
        await database.close()

    asyncio.run(story())


def test_a_sample_that_an_earlier_life_left_is_gone(database: Database) -> None:
    async def story() -> None:
        before = Request("r1", "s:sample:0", 1, "sample", b"payload")
        await _futures(database, "before").accept(before)
        futures = _futures(database)
        futures.resumed.set()
        with pytest.raises(ExpiredFuture):
            await futures.poll("r1", hold=0)
        await database.close()

    asyncio.run(story())


def test_the_same_number_is_the_same_future_also_at_once(database: Database) -> None:
    async def story() -> None:
        futures = _futures(database)
        requests = [Request(f"r{n}", "s:train:0", 1, "optim_step", b"p") for n in range(20)]
        ids = await asyncio.gather(*map(futures.accept, requests))
        assert set(ids) == {"r0"}
        assert [_payload(database, f"r{n}") for n in range(3)] == [b"p", None, None]
        await database.close()

    asyncio.run(story())


def test_a_result_that_cannot_be_stored_yet_is_handed_out_and_stored_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog_module, "_RETRY_SECONDS", 0.01)

    async def story() -> None:
        futures = _futures(database)
        request = await _accepted(futures)
        works = database.call

        async def full(_: Any) -> None:
            raise OperationalError("", None, Exception("database or disk is full"))

        monkeypatch.setattr(database, "call", full)
        futures.complete(request, failure("x", "user"))
        assert await futures.poll("r1", hold=5) == failure("x", "user")
        monkeypatch.setattr(database, "call", works)
        await futures.stored()
        stored = await Journal(database, "other").future("r1")
        assert stored is not None
        assert stored.result == failure("x", "user")
        await database.close()

    asyncio.run(story())
