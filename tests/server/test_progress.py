"""How far long work is: told while it lasts, to each watcher once, and to nobody afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server import progress as module
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.events import Events
from jupyter_tinker.server.progress import Tasks
from jupyter_tinker.server.supervisor import EngineNotStarted
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.progress import Progress, in_words
from tests.server import stand_in_kernel
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import Client, add_session, make_service
from tests.server.sse import parse, progress, step_row
from tests.server.stand_in_kernel import STEP, Stage

pytest_plugins = ["pytest_jupyter.jupyter_server"]
tell = stand_in_kernel.tell


@pytest.fixture
def events(tmp_path: Path, jp_asyncio_loop: Any) -> Iterator[Events]:
    database = Database(default_url(tmp_path))
    events = Events(database)

    async def start() -> None:
        events.start()

    jp_asyncio_loop.run_until_complete(start())
    yield events
    jp_asyncio_loop.run_until_complete(events.close())
    jp_asyncio_loop.run_until_complete(database.close())


def said(bodies: list[bytes] | None) -> list[tuple[int, int | None]]:
    """Task and how much is done; None: it is over."""
    told = [one["data"] for one in progress(b"".join(bodies or []))]
    return [(one["task"], None if one["over"] else one["done"]) for one in told]


# In words


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (Progress("starting the engine"), "starting the engine"),
        (Progress("loading tiny", 0, 20, "tensors"), "loading tiny: 0 of 20 tensors"),
        (Progress("replaying", 412, 420), "replaying: 412 of 420 steps"),
        (Progress("replaying", 0, 0), "replaying"),
        (Progress("x", 5 * 10**6, 10**7, "bytes"), "x: 5.0 of 10.0 MB"),
        (Progress("x", 10**9, 3 * 10**9, "bytes"), "x: 1.0 of 3.0 GB"),
    ],
)
def test_words(told: Progress, words: str) -> None:
    assert str(told) == in_words(told.to_json()) == words


# Tasks and who watches them


async def test_a_watcher_is_told_of_what_goes_on_and_that_it_is_over(events: Events) -> None:
    with await events.watch() as watcher:
        with events.progress.begin(Progress("loading", 0, 9, "tensors")) as task:
            assert said(await watcher.next(20)) == [(1, 0)]
            task.update(Progress("loading", 4, 9, "tensors"))
            assert said(await watcher.next(20)) == [(1, 4)]
            (listed,) = events.progress.to_json()
            assert {**listed, "since": 0.0} == {
                "task": 1, "run_id": None, "what": "loading", "done": 4, "total": 9,
                "unit": "tensors", "since": 0.0,
            }  # fmt: skip
        assert said(await watcher.next(20)) == [(1, None)]
        assert events.progress.to_json() == []
        assert watcher.told == {}


async def test_a_slow_watcher_is_given_the_newest_only(events: Events) -> None:
    with await events.watch() as watcher:
        task = events.progress.begin(Progress("replaying", 0, 999))
        for done in range(500):
            task.update(Progress("replaying", done, 999))
        assert said(await watcher.next(20)) == [(1, 499)]
        # What began and ended meanwhile is nothing to it.
        events.progress.begin(Progress("short")).close()
        task.close()
        assert said(await watcher.next(20)) == [(1, None)]


async def test_who_comes_later_is_told_of_what_goes_on(events: Events) -> None:
    task = events.progress.begin(Progress("loading"))
    with await events.watch() as watcher:
        assert said(await watcher.next(20)) == [(1, 0)]
        assert await watcher.next(0.01) == [], "and once"
    task.close()


async def test_a_watcher_of_a_run_is_told_of_it_and_of_the_engine(events: Events) -> None:
    tasks = events.progress
    with await events.watch(runs={"a"}) as watcher:
        for run in ("a", "b", None):
            tasks.begin(Progress("x"), run)
        first = progress(b"".join(await watcher.next(20) or []))
        assert [one["run_id"] for one in first] == ["a", None]


async def test_it_has_no_id_and_no_place_among_the_events(events: Events) -> None:
    with await events.watch(0) as watcher:
        first = await events._db.call(lambda db: events.record_step(db, step_row("a", 1)).id)
        with events.progress.begin(Progress("x")):
            second = await events._db.call(lambda db: events.record_step(db, step_row("a", 2)).id)
            found: list[Any] = []
            async with asyncio.timeout(20):
                while len(found) < 2:
                    found += parse(b"".join(await watcher.next(20) or []))
        assert [event.id for event in found] == [first, second] == [1, 2]
        assert watcher.cursor == 2


async def test_all_together_wake_the_watchers_five_times_a_second(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GAP_SECONDS", 1000.0)
    woken: list[int] = []
    events.progress.on_change = lambda: woken.append(1)
    task = events.progress.begin(Progress("x"))
    await asyncio.sleep(0.01)
    assert woken == [1]
    for done in range(100):
        task.update(Progress("x", done, 100))
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert woken == [1]


async def test_their_number_is_bounded(events: Events) -> None:
    tasks = [events.progress.begin(Progress(str(number))) for number in range(300)]
    assert len(events.progress.to_json()) == 100
    for task in tasks:
        task.close()
        task.close()
    assert events.progress.to_json() == []


async def test_a_line_of_the_log_now_and_then(
    jp_asyncio_loop: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    tasks = Tasks(logging.getLogger("test"))
    task = tasks.begin(Progress("replaying", 0, 50), "a")
    for now in range(50):
        task.update(Progress("replaying", now, 50))
        tasks._tell()
    lines = [record.getMessage() for record in caplog.records if record.name == "test"]
    assert lines == ["Run a: replaying: 5 of 50 steps", "Run a: replaying: 35 of 50 steps"]
    tasks.close()


# Revival


async def test_the_replay_of_a_run_is_told(tmp_path: Path) -> None:
    engine = FakeEngine()
    service = make_service(tmp_path, engine, snapshot_overhead=1e-9)
    add_session(service._database)
    service.start("here")
    client = Client(service)
    await client.create()
    for seed in range(4):
        await client.step(seed)
    seen: list[tuple[str | None, str]] = []

    def look(op: ops.Op) -> None:
        told = service.progress.to_json()
        seen.extend((task["run_id"], in_words(task)) for task in told)

    engine.before = look
    with await service.events.watch() as watcher:
        engine.trains.clear()
        engine.die()
        told: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while not told:
                told += progress(b"".join(await watcher.next(20) or []))
            engine.trains.set()
            while not told[-1]["data"]["over"]:
                told += progress(b"".join(await watcher.next(20) or []))
        assert (told[0]["run_id"], told[0]["data"]["what"]) == (client.run, "restoring a snapshot")
        await client.step(9)
        replayed = [words for run, words in seen if run == client.run]
        assert "replaying: 3 of 4 steps" in replayed
        assert replayed.index("replaying: 1 of 4 steps") < replayed.index("replaying: 3 of 4 steps")
        assert service.progress.to_json() == []
    await service.stop()


# Over HTTP


async def test_the_status_has_it(jp_serverapp: Any, jp_fetch: Any) -> None:
    tasks = jp_serverapp.web_app.settings["tinker_service"].progress
    with tasks.begin(Progress("loading", 1, 2, "tensors"), "a"):
        (told,) = json.loads((await jp_fetch("tinker", "status")).body)["progress"]
        assert (told["what"], told["done"], told["total"], told["run_id"]) == ("loading", 1, 2, "a")
    assert json.loads((await jp_fetch("tinker", "status")).body)["progress"] == []


# The engine's


def names(stage: Stage) -> list[str]:
    return [task["what"] for task in stage.supervisor.progress.to_json()]


async def _heard(stage: Stage, expected: list[str]) -> None:
    async with asyncio.timeout(20):
        while names(stage) != expected:  # noqa: ASYNC110 (nothing is set when it is heard)
            await asyncio.sleep(0)


def test_the_start_of_an_engine_is_told(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        starting = asyncio.ensure_future(stage.supervisor.ensure_started())
        await _heard(stage, ["starting the engine"])
        await starting
        assert names(stage) == []
        assert stage.kernels[0].iopub_channel.topics == [b"tinker_progress"], "and nothing else"

    tell(story)


def test_a_start_that_fails_is_over(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = False
        with pytest.raises(EngineNotStarted):
            await stage.supervisor.ensure_started()
        assert names(stage) == []

    tell(story)


def test_what_an_engine_says_is_told_until_it_answers(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        (asked,) = await stage.ask(STEP)
        kernel = stage.kernels[0]
        number = kernel.asked[0][0]
        for done in (1, 2):
            progress = Progress("loading tiny", done, 9, "tensors").to_json()
            kernel.iopub_channel.say(number, progress)
        await _heard(stage, ["loading tiny"])
        async with asyncio.timeout(20):
            while stage.supervisor.progress.to_json()[0]["done"] != 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        kernel.answer()
        await asked
        await _heard(stage, [])
        # A word that comes late is about nothing.
        kernel.iopub_channel.say(number, Progress("loading tiny").to_json())
        await asyncio.sleep(0)
        assert names(stage) == []

    tell(story)


def test_what_a_dead_engine_was_at_is_over(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        (asked,) = await stage.ask(STEP)
        kernel = stage.kernels[0]
        kernel.iopub_channel.say(kernel.asked[0][0], Progress("loading tiny").to_json())
        await _heard(stage, ["loading tiny"])
        await stage.die(asked)
        await _heard(stage, [])

    tell(story)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"what": 1, "done": 0, "total": None, "unit": "steps"},
        {"what": "x", "done": -1, "total": None, "unit": "steps"},
        {"what": "x", "done": 0.5, "total": 1, "unit": "steps"},
        {"what": "x", "done": 0, "total": 2**60, "unit": "steps"},
        {"what": "x", "done": 0, "total": None, "unit": "parsecs"},
    ],
)
def test_what_is_no_progress_is_not_told(tell: Any, content: dict[str, Any]) -> None:
    async def story(stage: Stage) -> None:
        await stage.ask(STEP)
        kernel = stage.kernels[0]
        number = kernel.asked[0][0]
        kernel.iopub_channel.say(number, content)
        kernel.iopub_channel.say(number, Progress("x" * 1000).to_json())
        await _heard(stage, ["x" * 300])

    tell(story)
