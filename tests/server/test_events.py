"""Events on a database of their own: recorded, kept, told; no server, no engine."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from jupyter_events import EventLogger
from sqlalchemy.orm import Session

from jupyter_tinker.server.database import Database, after_commit
from jupyter_tinker.server.event_bus import SCHEMAS, JupyterEventBus
from jupyter_tinker.server.event_ring import Encoded, Ring
from jupyter_tinker.server.events import EventLimits, Events
from jupyter_tinker.server.schema import EventRow, StepRow
from jupyter_tinker.server.watchers import TooManyWatchers, Watcher
from jupyter_tinker.wire.events import Event, Kind, encode
from tests.server.sse import parse, step_row

pytest_plugins = ["pytest_jupyter.jupyter_server"]

SMALL = EventLimits(max_watchers=3, ring_events=10, ring_bytes=4000, chunk_bytes=1500, page=7)


@pytest.fixture
def database(tmp_path: Path, jp_asyncio_loop: Any) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'tinker.db'}")
    yield database
    jp_asyncio_loop.run_until_complete(database.close())


@pytest.fixture
def events(database: Database, jp_asyncio_loop: Any) -> Iterator[Events]:
    events = Events(database, SMALL)

    async def start() -> None:
        events.start()

    jp_asyncio_loop.run_until_complete(start())
    yield events
    jp_asyncio_loop.run_until_complete(events.close())


async def add_steps(events: Events, run: str, count: int, first: int = 1) -> list[int]:
    """Steps, each in a transaction of its own."""

    def one(number: int) -> Any:
        return lambda db: events.record_step(db, step_row(run, number)).id

    return [await events._db.call(one(number)) for number in range(first, first + count)]


async def told(watcher: Watcher, upto: int) -> list[Event]:
    """Everything that a watcher is given until the id `upto`."""
    found: list[Event] = []
    async with asyncio.timeout(20):
        while not found or found[-1].id < upto:
            bodies = await watcher.next(20)
            assert bodies, "the watcher was closed, or given nothing"
            found += parse(b"".join(bodies))
    return found


async def test_ids_rise_over_events_and_steps(events: Events, database: Database) -> None:
    def work(db: Session) -> list[int]:
        made = [
            events.record(db, "a", "run_created", actor="me", path="p"),
            events.record_step(db, step_row("a", 1)),
            events.record_step(db, step_row("b", 1)),
            events.record(db, None, "engine_started"),
        ]
        return [event.id for event in made]

    assert await database.call(work) == [1, 2, 3, 4]
    assert (await events.emit("a", "paused", reason="r")).id == 5
    assert await add_steps(events, "a", 2, first=2) == [6, 7]
    # A later life of the server goes on counting.
    assert (await Events(database).emit("a", "resumed")).id == 8


async def test_an_event_says_what_happened(events: Events) -> None:
    before = time.time()
    with await events.watch() as watcher:
        await events.emit("a", "control_changed", actor="me", step=3, before={"x": 1}, after={})
        await events.emit("a", "rewound", actor="me", step=2, branch=1, abandoned=1)
        await add_steps(events, "a", 1)
        changed, rewound, step = await told(watcher, 3)
    assert changed == Event(
        1, "a", changed.time, "control_changed", "me", 3, {"before": {"x": 1}, "after": {}}
    )
    assert before <= changed.time <= time.time()
    assert (rewound.step, rewound.data) == (2, {"branch": 1, "abandoned": 1, "step": 2})
    assert (step.kind, step.run_id, step.step, step.actor) == ("step", "a", 1, None)
    assert set(step.data) == set(StepRow.__table__.columns.keys())
    assert step.data["grad_norm"] == 0.5
    assert step.data["id"] == step.id == 3
    # What is read again from the database is the same to the letter.
    again = await events.history(0)
    assert [parse(e.body)[0] for e in again] == [changed, rewound, step]


async def test_what_is_rolled_back_is_not_told(events: Events, database: Database) -> None:
    def failing(db: Session) -> None:
        events.record(db, "a", "paused")
        events.record_step(db, step_row("a", 1))
        raise ZeroDivisionError

    with await events.watch() as watcher:
        with pytest.raises(ZeroDivisionError):
            await database.call(failing)
        assert (await events.emit("a", "resumed")).id == 1
        assert [event.kind for event in await told(watcher, 1)] == ["resumed"]


async def test_after_commit_comes_after_the_commit(database: Database) -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(database.run(lambda other: other.query(EventRow).count()))

    def work(db: Session) -> None:
        db.add(EventRow(id=1, run_id=None, time=0.0, kind="paused", data={}))
        after_commit(db, look)

    await database.call(work)
    assert seen == [1]


async def test_events_of_one_moment_are_told_once_and_in_order(events: Events) -> None:
    with await events.watch() as watcher:
        made = await asyncio.gather(*(events.emit(f"r{i % 7}", "paused", n=i) for i in range(60)))
        assert [event.id for event in made] == list(range(1, 61))
        assert [event.id for event in await told(watcher, 60)] == list(range(1, 61))


async def test_what_a_cancelled_caller_did_is_told(events: Events, database: Database) -> None:
    begun, go = threading.Event(), threading.Event()

    def work(db: Session) -> None:
        begun.set()
        go.wait(20)
        events.record(db, "a", "paused")

    with await events.watch() as watcher:
        calling = asyncio.ensure_future(database.call(work))
        await asyncio.to_thread(begun.wait, 20)
        calling.cancel()
        go.set()
        assert [event.kind for event in await told(watcher, 1)] == ["paused"]


async def test_a_slow_watcher_misses_nothing_and_costs_nothing(events: Events) -> None:
    with await events.watch() as slow, await events.watch(runs={"b"}) as picky:
        for number in range(1, 41):
            await add_steps(events, "a" if number % 3 else "b", 1, first=number)
            if number % 8 == 0:
                await events.emit(None, "engine_started")
        with await events.watch(after=0) as late:
            everything = await told(late, 45)
        ring = events._ring
        assert ring is not None
        assert ring.floor > 0, "the ring must have lost what the slow watchers still want"
        assert [event.id for event in everything] == list(range(1, 46))
        assert await told(slow, 45) == everything
        mine = [event for event in everything if event.run_id in (None, "b")]
        assert await told(picky, mine[-1].id) == mine
        assert picky.cursor <= ring.newest


@pytest.mark.parametrize("after", [0, 1, 20, 34, 35, 36, 44, 45])
async def test_history_and_what_is_new_join_without_a_seam(events: Events, after: int) -> None:
    await add_steps(events, "a", 45)
    with await events.watch(after=after) as watcher:
        await add_steps(events, "a", 5, first=46)
        found = [event.id for event in await told(watcher, 50)]
    assert found == list(range(after + 1, 51))


async def test_history_comes_in_pages(events: Events) -> None:
    await add_steps(events, "a", 9)
    await add_steps(events, "b", 9)
    await events.emit("a", "run_ended", reason="r")
    await events.emit("b", "run_ended", reason="r")
    await events.emit(None, "engine_died", reason="r")
    for runs, ids in (
        (None, list(range(1, 22))),
        ({"a"}, [*range(1, 10), 19, 21]),
        ({"b"}, [*range(10, 19), 20, 21]),
        ({"a", "b", "none"}, list(range(1, 22))),
        ({"none"}, [21]),
    ):
        read: list[int] = []
        while page := await events.history(read[-1] if read else 0, runs, 4):
            assert len(page) <= 4
            read += [event.id for event in page]
        assert read == ids


async def test_what_another_process_wrote_is_told_too(events: Events, database: Database) -> None:
    other = Events(database)
    with await events.watch() as watcher:
        await events.emit("a", "paused")
        assert len(await told(watcher, 1)) == 1
        await other.emit("a", "guard")
        await other.emit("a", "guard")
        await events.emit("a", "resumed")
        kinds = [(event.id, event.kind) for event in await told(watcher, 4)]
    assert kinds == [(2, "guard"), (3, "guard"), (4, "resumed")]


async def test_an_id_that_was_never_told_stands_for_now(events: Events) -> None:
    await events.emit("a", "paused")
    with await events.watch(after=1000) as watcher:
        assert watcher.cursor == 1
        await events.emit("a", "resumed")
        assert [event.id for event in await told(watcher, 2)] == [2]


async def test_nothing_new_and_the_end(events: Events) -> None:
    with await events.watch(runs={"a"}) as watcher:
        assert await watcher.next(0.01) == []
        waiting = asyncio.ensure_future(watcher.next(60))
        await events.emit("b", "paused")
        await asyncio.sleep(0.1)
        assert not waiting.done(), "another run's events are not this watcher's"
        watcher.close()
        assert await waiting is None


async def test_the_number_of_watchers_is_bounded(events: Events) -> None:
    watchers = [await events.watch() for _ in range(3)]
    with pytest.raises(TooManyWatchers, match="max_watchers"):
        await events.watch()
    with watchers[0]:
        pass
    with await events.watch():
        pass
    closing = asyncio.ensure_future(events.close())
    for watcher in watchers[1:]:
        assert await watcher.next(60) is None
        with watcher:
            pass
    await closing
    with pytest.raises(TooManyWatchers, match="stop"):
        await events.watch()
    assert (await events.emit("a", "paused")).id == 1  # still kept


def _encoded(number: int, size: int = 1) -> Encoded:
    return Encoded(number, "a" if number % 2 else "b", bytes(size))


def _ids(ring: Ring, after: int) -> int:
    return len(ring.after(after, None, 10**9)[0])


def test_the_ring_is_bounded_by_number_and_by_bytes() -> None:
    ring = Ring(5, max_events=4, max_bytes=100)
    ring.extend([_encoded(n, 10) for n in range(6, 9)])
    assert (ring.floor, ring.newest, ring.size, _ids(ring, 5), _ids(ring, 7)) == (5, 8, 30, 3, 1)
    ring.extend([_encoded(n, 10) for n in range(9, 12)])
    assert (ring.floor, ring.newest, ring.size, _ids(ring, 7)) == (7, 11, 40, 4)
    ring.extend([_encoded(12, 75)])
    assert (ring.floor, ring.newest, ring.size, _ids(ring, 9)) == (9, 12, 95, 3)
    ring.extend([_encoded(13, 1000)])
    assert (ring.floor, ring.newest, ring.size, _ids(ring, 13)) == (13, 13, 0, 0)


def test_the_ring_gives_a_chunk_of_some_runs() -> None:
    ring = Ring(0, max_events=100, max_bytes=1000)
    ring.extend([_encoded(n, n) for n in range(1, 11)])
    bodies, cursor = ring.after(0, {"b"}, 5)
    assert ([len(body) for body in bodies], cursor) == ([2, 4], 4)
    bodies, cursor = ring.after(cursor, {"b"}, 1000)
    assert ([len(body) for body in bodies], cursor) == ([6, 8, 10], 10)
    assert ring.after(8, {"none"}, 1000) == ([], 10)


def test_the_ring_begins_anew_behind_a_gap() -> None:
    ring = Ring(0, max_events=100, max_bytes=1000)
    ring.extend([_encoded(1), _encoded(2), _encoded(2), _encoded(5), _encoded(3), _encoded(6)])
    assert (ring.floor, ring.newest, ring.size, _ids(ring, 4)) == (4, 6, 2, 2)


def test_what_json_cannot_say_is_told_all_the_same() -> None:
    data = {"x": float("nan"), "y": [float("inf"), 1.5, "z\n\nid: 7"], "p": Path("/p"), "b": True}
    (event,) = parse(encode(Event(1, None, 0.0, "guard", None, None, data)))
    assert event.data == {"x": None, "y": [None, 1.5, "z\n\nid: 7"], "p": "/p", "b": True}


# Jupyter's event bus


def _an_event(kind: Kind, **data: Any) -> Event:
    return Event(1, "a", 1.5, kind, "me", None, data)


def test_every_kind_but_steps_has_a_schema() -> None:
    assert set(SCHEMAS) == set(get_args(Kind)) - {"step"}


async def test_jupyters_bus_is_told_of_all_but_steps(events: Events) -> None:
    logger = EventLogger()
    events.bus = JupyterEventBus(logger, logging.getLogger())
    JupyterEventBus(logger, logging.getLogger())  # the schemas are known already
    heard: list[tuple[str, dict[str, Any]]] = []

    async def listen(logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        heard.append((schema_id, data))

    logger.add_listener(listener=listen)
    with await events.watch() as watcher:
        for kind in SCHEMAS:
            await events.emit("a", kind, actor="me", step=1, reason="r")
        await add_steps(events, "a", 1)
        made = await told(watcher, len(SCHEMAS) + 1)
    await logger.gather_listeners()
    assert sorted(data["id"] for _, data in heard) == [event.id for event in made[:-1]]
    for schema, data in heard:
        assert schema == SCHEMAS[data["kind"]]
        assert schema.startswith("https://events.jupyter.org/jupyter_tinker/")
        assert data == made[data["id"] - 1].to_json()


async def test_jupyters_bus_disturbs_nobody(
    events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    logger = EventLogger()
    events.bus = JupyterEventBus(logger, logging.getLogger("test"))

    async def listen(logger: Any, schema_id: str, data: dict[str, Any]) -> None: ...

    def broken(schema_id: str, data: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError("a modifier of somebody's")

    logger.add_listener(listener=listen)
    logger.add_modifier(schema_id=SCHEMAS["paused"], modifier=broken)
    with await events.watch() as watcher:
        await events.emit("a", "paused")
        await events.emit(None, "paused")  # not as its schema wants it
        await events.emit("a", "run_ended")
        assert [event.id for event in await told(watcher, 3)] == [1, 2, 3]
    assert "a modifier of somebody's" in caplog.text


async def test_a_bus_without_listeners_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    JupyterEventBus(EventLogger(), logging.getLogger("test"))(_an_event("paused"))
    assert not caplog.records


def test_events_as_json_hold_all_fields() -> None:
    value = json.loads(encode(_an_event("paused", reason="r")).split(b"data: ")[1])
    assert value == {
        "id": 1,
        "run_id": "a",
        "time": 1.5,
        "kind": "paused",
        "actor": "me",
        "step": None,
        "data": {"reason": "r"},
    }
