"""A budget for histories: what is dropped first, what never is, and that it is said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from jupyter_tinker.server.backlog import Backlog
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.events import Events
from jupyter_tinker.server.history import History, HistoryGone, operation
from jupyter_tinker.server.retention import Retention, sizes
from jupyter_tinker.server.schema import (
    AuditRow,
    BranchRow,
    EventRow,
    PayloadRow,
    RequestRow,
    RunRow,
    SessionRow,
    SnapshotRow,
)

STEP = 1000  # bytes of a payload
SNAPSHOT = 5000  # bytes


class Histories:
    """Runs with ten steps each, and snapshots of steps 4 and 8."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(default_url(folder))
        self.snapshots = folder / "snapshots"
        self.history = History(self.database, Backlog(self.database))
        self.events = Events(self.database)
        self.retention = Retention(
            self.database, self.snapshots, self.events, log=logging.getLogger("test")
        )
        session = SessionRow(id="s", created_at=0.0, owner="o", sdk_version="", tags=[])
        self.database.run(lambda db: db.add(session))

    def add(self, run: str, used: float, ended: str | None = None) -> None:
        row = RunRow(
            id=run,
            session_id="s",
            owner="o",
            base_model="m",
            base_path="m",
            architecture="a",
            lora={},
            created_at=0.0,
            last_request_at=used,
            ended=ended,
        )
        rows = [row, operation(run, 1, "create_model", 0)]
        for step in range(1, 11):
            request = RequestRow(
                id=f"{run}-{step}",
                run_id=run,
                seq_id=step,
                kind="forward_backward",
                server="now",
                accepted_at=0.0,
                done_at=1.0,
            )
            payload = PayloadRow(request_id=request.id, run_id=run, body=bytes(STEP))
            done = operation(run, 2 * step, "forward_backward", step - 1, request_id=request.id)
            rows += [request, payload, done, operation(run, 2 * step + 1, "optim_step", step)]
        for step in (4, 8):
            file = f"{run}/{step}.safetensors"
            (self.snapshots / file).parent.mkdir(parents=True, exist_ok=True)
            (self.snapshots / file).write_bytes(bytes(SNAPSHOT))
            rows.append(
                SnapshotRow(
                    run_id=run,
                    position=2 * step + 1,
                    step=step,
                    file=file,
                    size_bytes=SNAPSHOT,
                    sha256="",
                    created_at=0.0,
                )
            )
        self.database.run(lambda db: db.add_all(rows))

    def total(self) -> dict[str, int]:
        return {size.run_id: size.total for size in self.database.run(sizes)}

    async def steps(self, run: str) -> list[int]:
        """The steps of a run that can be made again."""
        place, found = await self.history.place(run), []
        for step in range(11):
            try:
                position = await self.history.state_of_step(run, place, step, 0)
                await self.history.plan(run, place, position)
                found.append(step)
            except HistoryGone:
                pass
        return found


WHOLE = 10 * STEP + 2 * SNAPSHOT
HEAD = 2 * STEP + SNAPSHOT  # a snapshot of step 8, and two steps


@pytest.fixture
def histories(tmp_path: Path) -> Histories:
    return Histories(tmp_path)


def _run(histories: Histories, story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story()
        await histories.database.close()

    asyncio.run(whole())


def test_the_oldest_of_the_run_used_least_recently_goes_first(histories: Histories) -> None:
    async def story() -> None:
        for run, used in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
            histories.add(run, used)
        await histories.retention.keep_within(3 * WHOLE)
        assert histories.total() == dict.fromkeys("abc", WHOLE)
        # With a twentieth more than needed, three payloads.
        await histories.retention.keep_within(3 * WHOLE - 1)
        assert histories.total() == {"a": WHOLE - 3 * STEP, "b": WHOLE, "c": WHOLE}
        assert await histories.steps("a") == [0, 1, 4, 5, 6, 7, 8, 9, 10]
        for run in "bc":
            assert await histories.steps(run) == list(range(11))
        # All of its past, and then that of the next.
        await histories.retention.keep_within(2 * WHOLE + HEAD - STEP)
        assert histories.total()["a"] == HEAD
        assert WHOLE - 5 * STEP < histories.total()["b"] < WHOLE
        assert await histories.steps("a") == [0, 8, 9, 10]
        assert [f.name for f in (histories.snapshots / "a").iterdir()] == ["8.safetensors"]

    _run(histories, story)


def test_a_run_that_is_alone_loses_no_more_than_is_too_much(histories: Histories) -> None:
    async def story() -> None:
        histories.add("a", 1.0)
        left = []
        while not left or histories.total()["a"] < left[-1][0]:
            left.append((histories.total()["a"], await histories.steps("a")))
            await histories.retention.keep_within(left[-1][0] - 1)
        assert left[0] == (WHOLE, list(range(11)))
        # Step 4 is made of its snapshot.
        assert left[1:3] == [
            (WHOLE - STEP, list(range(11))),
            (WHOLE - 2 * STEP, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]),
        ]
        # The newest are there to the end, and the past went from its beginning.
        assert all(steps[-3:] == [8, 9, 10] for _, steps in left)
        assert [4 in steps for _, steps in left] == sorted((4 in s for _, s in left), reverse=True)
        assert left[-1] == (HEAD, [0, 8, 9, 10])
        assert len(left) > 5

    _run(histories, story)


def test_what_a_rewind_left_is_not_needed(histories: Histories) -> None:
    async def story() -> None:
        histories.add("a", 1.0)
        row = BranchRow(
            run_id="a",
            number=1,
            first_position=22,
            parent_position=11,
            step=5,
            created_at=0.0,
            actor="ada",
        )
        histories.database.run(lambda db: db.add(row))
        await histories.retention.keep_within(0)
        # The snapshot of step 4 and the batch of step 5.
        assert histories.total() == {"a": SNAPSHOT + STEP}
        place = await histories.history.place("a")
        plan = await histories.history.plan("a", place, place.head)
        assert plan.steps == 1

    _run(histories, story)


def test_what_a_run_needs_to_come_back_is_kept_and_all_of_ended_ones_dropped(
    histories: Histories,
) -> None:
    async def story() -> None:
        histories.add("a", 1.0)
        histories.add("ended", 9.0, ended="it is over")
        await histories.retention.keep_within(0)
        assert histories.total() == {"a": HEAD}
        assert await histories.steps("a") == [0, 8, 9, 10]
        assert not list((histories.snapshots / "ended").iterdir())

    _run(histories, story)


def test_runs_that_cannot_be_held_are_left_alone(histories: Histories) -> None:
    @asynccontextmanager
    async def hold(run_id: str) -> AsyncIterator[bool]:
        assert run_id == "a"
        yield False

    async def story() -> None:
        histories.add("a", 1.0)
        await histories.retention.keep_within(0, hold)
        assert histories.total() == {"a": WHOLE}

    _run(histories, story)


def test_it_is_never_silent(histories: Histories, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        histories.add("a", 1.0)
        await histories.retention.keep_within(0)
        freed = WHOLE - HEAD
        audit = histories.database.run(lambda db: db.scalars(select(AuditRow)).one())
        assert (audit.event, audit.details["size_bytes"]) == ("run_history_dropped", freed)
        event = histories.database.run(lambda db: db.scalars(select(EventRow)).one())
        assert (event.kind, event.run_id) == ("history_trimmed", "a")
        assert event.data == {"bytes": freed, "kept": "head"}
        assert f"Run a: {freed} bytes of its history were dropped" in caplog.text
        assert "history_bytes" in caplog.text  # there is nothing more to drop
        caplog.clear()
        await histories.retention.keep_within(0)
        assert not caplog.text

    _run(histories, story)


def test_runs_that_owe_an_answer_are_not_old(histories: Histories) -> None:
    async def story() -> None:
        histories.add("a", 1.0)
        histories.add("b", 2.0)
        histories.add("c", 30.0)
        owing = RequestRow(
            id="x", run_id="b", seq_id=99, kind="optim_step", server="now", accepted_at=2.0
        )
        histories.database.run(lambda db: db.add(owing))
        old = await histories.retention.unused_since(10.0)
        assert [size.run_id for size in old] == ["a"]
        assert (old[0].snapshots, old[0].payloads) == (2 * SNAPSHOT, 10 * STEP)

    _run(histories, story)
