"""What is written later is written once, in order, whatever the database does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError, OperationalError

from jupyter_tinker.server import backlog as backlog_module
from jupyter_tinker.server.backlog import Backlog

FULL = OperationalError("", None, Exception("database or disk is full"))


class Transaction:
    """What is written is there once the whole is."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    def flush(self) -> None:
        pass


class FakeDatabase:
    """Keeps what works write; `fails` says of each transaction how it ends."""

    def __init__(self) -> None:
        self.stored: list[Any] = []
        self.transactions: list[list[Any]] = []
        self.fails: Callable[[Transaction], None] = lambda transaction: None
        self.open = asyncio.Event()
        self.open.set()

    async def call(self, work: Callable[[Any], Any]) -> Any:
        await self.open.wait()
        await asyncio.sleep(0)
        transaction = Transaction()
        result = work(transaction)
        self.fails(transaction)
        self.stored += transaction.written
        self.transactions.append(transaction.written)
        return result


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "_RETRY_SECONDS", 0.0)


def writes(value: Any) -> Callable[[Any], None]:
    return lambda transaction: transaction.written.append(value)


def tell(story: Callable[[FakeDatabase, Backlog], Awaitable[None]]) -> None:
    async def whole() -> None:
        database = FakeDatabase()
        backlog = Backlog(database)  # type: ignore[arg-type]
        await story(database, backlog)
        await backlog.close()

    asyncio.run(asyncio.wait_for(whole(), 10))


def test_many_are_written_in_order_and_few_transactions() -> None:
    async def story(database: FakeDatabase, backlog: Backlog) -> None:
        tried = [backlog.put(writes(n)) for n in range(600)]
        assert not database.stored
        await backlog.flushed()
        assert database.stored == list(range(600))
        assert max(map(len, database.transactions)) == 256
        assert all([await one for one in tried])
        await backlog.flushed()  # of nothing

    tell(story)


def test_a_full_disk_only_takes_time() -> None:
    async def story(database: FakeDatabase, backlog: Backlog) -> None:
        full = True

        def fails(_: Transaction) -> None:
            if full:
                raise FULL

        database.fails = fails
        first, second = backlog.put(writes(1)), backlog.put(writes(2))
        assert [await first, await second] == [False, False]
        flushed = asyncio.create_task(backlog.flushed())
        later = backlog.put(writes(3))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not flushed.done()
        full = False
        await flushed
        await later
        assert database.stored == [1, 2, 3]

    tell(story)


def test_flushing_has_an_end() -> None:
    async def story(database: FakeDatabase, backlog: Backlog) -> None:
        database.open.clear()
        backlog.put(writes(1))
        await backlog.flush(0.01)
        assert database.stored == []
        database.open.set()
        await backlog.flush(10)
        assert database.stored == [1]

    tell(story)


def test_who_waits_may_give_up_and_it_is_still_written() -> None:
    async def story(database: FakeDatabase, backlog: Backlog) -> None:
        database.open.clear()
        backlog.put(writes(1))
        waiting = asyncio.create_task(backlog.flushed())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        database.open.set()
        await backlog.flushed()
        assert database.stored == [1]

    tell(story)


def test_what_fails_by_its_own_fault_is_dropped_alone() -> None:
    def faulty(transaction: Any) -> None:
        transaction.written.append("half of it")
        raise IntegrityError("", None, Exception("UNIQUE"))

    async def story(database: FakeDatabase, backlog: Backlog) -> None:
        works = [writes(1), faulty, writes(2), lambda _: 1 / 0, writes(3)]
        tried = [backlog.put(work) for work in works]
        await backlog.flushed()
        assert database.stored == [1, 2, 3]
        assert [await one for one in tried] == [True, False, True, False, True]
        backlog.put(faulty)
        await backlog.flushed()  # waits for nothing that will not be
        assert database.stored == [1, 2, 3]

    tell(story)


def test_closing_stops_trying() -> None:
    async def story(database: FakeDatabase, backlog: Backlog) -> None:
        database.open.clear()
        backlog.put(writes(1))
        await asyncio.sleep(0)
        await backlog.close()
        database.open.set()
        await asyncio.sleep(0)
        assert database.stored == []

    tell(story)


# How each transaction ends, and which works are faulty.
_ENDS = st.lists(st.sampled_from(["done", "full"]), max_size=12)


@given(faults=st.lists(st.booleans(), min_size=1, max_size=12), ends=_ENDS, pauses=st.data())
def test_nothing_is_lost_or_doubled(faults: list[bool], ends: list[str], pauses: Any) -> None:
    async def story(database: FakeDatabase, backlog: Backlog) -> None:
        coming = list(ends)

        def fails(_: Transaction) -> None:
            if coming and coming.pop(0) == "full":
                raise FULL

        database.fails = fails
        for n, fault in enumerate(faults):
            backlog.put((lambda _: 1 / 0) if fault else writes(n))
            for _ in range(pauses.draw(st.integers(0, 3))):
                await asyncio.sleep(0)
        await backlog.flushed()
        assert database.stored == [n for n, fault in enumerate(faults) if not fault]

    tell(story)
