"""Which snapshots are taken, and which are kept."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_tinker.server.backlog import Backlog
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.history import History
from jupyter_tinker.server.runs import Run
from jupyter_tinker.server.schema import RunRow, SnapshotRow
from jupyter_tinker.server.snapshots import Snapshots, kept
from jupyter_tinker.wire import ops
from tests.server.fake_engine import FakeEngine

LORA = ops.LoraSpec(4, 1)


def rows(positions: list[int]) -> list[SnapshotRow]:
    return [SnapshotRow(run_id="r", position=position) for position in positions]


# Distances between snapshots that were taken one after another.
_GAPS = st.lists(st.integers(1, 20), min_size=1, max_size=300)


@given(_GAPS)
def test_the_newest_are_kept_and_nothing_is_made_up(gaps: list[int]) -> None:
    positions = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    chosen = kept(rows(positions))
    assert chosen <= set(positions)
    assert set(positions[-3:]) <= chosen


@given(_GAPS)
def test_what_is_kept_stays_when_it_is_looked_at_again(gaps: list[int]) -> None:
    positions = [sum(gaps[: n + 1]) for n in range(len(gaps))]
    chosen = sorted(kept(rows(positions)))
    assert kept(rows(chosen)) == set(chosen)


@pytest.mark.parametrize("gaps", [[1], [7], [1, 2, 3], [5, 1, 20, 1]])
def test_thousands_of_snapshots_leave_few_at_all_distances(gaps: list[int]) -> None:
    left: list[int] = []
    position = 0
    for number in range(3000):
        position += gaps[number % len(gaps)]
        left = sorted(kept(rows([*left, position])))
        assert left[-1] == position
        # Three, and some for each doubling of the distance.
        assert len(left) <= 5 + 2 * math.log2(position + 1)
    # The further back, the fewer, but never nothing: the next older one is not out of proportion.
    ages = sorted(position - p for p in left)[2:]
    assert all(older <= 6 * max(age, max(gaps)) for age, older in itertools.pairwise(ages))
    assert ages[-1] >= position / 4


class Stage:
    """Snapshots of a run in a fake engine."""

    def __init__(self, folder: Path, overhead: float) -> None:
        self.engine = FakeEngine()
        self.database = Database(default_url(folder))
        self.history = History(self.database, Backlog(self.database))
        self.snapshots = Snapshots(
            self.engine,  # type: ignore[arg-type]
            self.history,
            folder / "snapshots",
            overhead=overhead,
            log=logging.getLogger("test"),
        )
        self.run = Run(RunRow(id="s:train:0"), LORA)
        self.cost = 1.0  # seconds that the next snapshot says it took

    async def begin(self) -> None:
        self.run.generation = await self.engine.ensure_started()
        await self.engine.request(ops.CreateRun(self.run.id, "tiny", "/m", LORA))
        written = self.engine.runs.written

        def costly(op: Any, state: Any) -> dict[str, Any]:
            half = self.cost / 2
            return {**written(op, state), "blocked_seconds": half, "write_seconds": half}

        self.engine.runs.written = costly  # type: ignore[method-assign]

    async def step(self, seconds: float = 1.0, *, boundary: bool = True) -> bool:
        """Compute for a while; whether a snapshot was taken then."""
        before = self.engine.count(ops.SnapshotRun)
        self.run.place.advance()
        self.run.computed += seconds
        await self.snapshots.consider(self.run, boundary=boundary)
        for task in list(self.snapshots._writing.values()):
            await task
        return self.engine.count(ops.SnapshotRun) > before


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    made = Stage(tmp_path, 0.1)
    yield made
    asyncio.run(made.database.close())


def test_the_first_snapshot_comes_at_a_guessed_cost(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        # 12 bytes a parameter at 200 MB a second: 0.6 seconds, of 10 percent.
        stage.run.parameters = 10_000_000
        assert [await stage.step() for _ in range(6)] == [False] * 5 + [True]

    asyncio.run(story())


def test_the_interval_follows_the_cost(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        stage.cost = 0.3
        assert await stage.step()  # of a run without parameters: at once
        assert [await stage.step() for _ in range(6)] == [False, False, True] * 2
        stage.cost = 0.5
        assert [await stage.step() for _ in range(3)] == [False, False, True]
        assert [await stage.step() for _ in range(10)] == [False, False, False, False, True] * 2
        stage.cost = 0.05
        assert [await stage.step() for _ in range(7)] == [False] * 4 + [True] * 3

    asyncio.run(story())


@pytest.mark.parametrize("cost", [0.2, 1.0, 7.0])
def test_snapshots_take_no_more_than_they_may(stage: Stage, cost: float) -> None:
    async def story() -> None:
        await stage.begin()
        stage.cost = cost
        taken = sum([await stage.step(0.7) for _ in range(400)])
        assert 0.05 * 400 * 0.7 <= cost * taken <= 0.1 * 400 * 0.7 + 2 * cost

    asyncio.run(story())


def test_in_the_midst_of_a_step_it_waits_longer(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        stage.cost = 0.2
        assert await stage.step()
        assert [await stage.step(boundary=False) for _ in range(7)] == [False] * 7
        assert await stage.step(boundary=False)
        assert [await stage.step(boundary=False) for _ in range(3)] == [False] * 3
        assert await stage.step()

    asyncio.run(story())


def test_one_is_written_at_a_time(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        for _ in range(3):
            stage.run.place.advance()
            stage.run.computed += 100
            await stage.snapshots.consider(stage.run, boundary=True)
        await stage.snapshots._writing[stage.run.id]
        (row,) = await stage.history.snapshots(stage.run.id)
        assert row.position == 1

    asyncio.run(story())


def test_old_snapshots_go_with_their_files(stage: Stage, tmp_path: Path) -> None:
    async def story() -> None:
        await stage.begin()
        for _ in range(50):
            assert await stage.step(1000)
        rows = await stage.history.snapshots(stage.run.id)
        assert rows[-1].position == 50
        assert len(rows) <= 3 + math.log2(50) + 2
        files = {file.name for file in (tmp_path / "snapshots").rglob("*") if file.is_file()}
        assert files == {Path(row.file).name for row in rows}

    asyncio.run(story())


def test_a_snapshot_is_of_the_moment_it_was_begun(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        run = stage.run
        before = stage.engine.runs.states[run.id]
        run.place.advance()
        task = await stage.snapshots.begin(run)
        run.place.advance()
        run.step = 1
        await stage.engine.request(ops.OptimStep(run.id, ops.AdamParams()))
        assert task is not None
        await task
        (row,) = await stage.history.snapshots(run.id)
        assert (row.position, row.step) == (1, 0)
        file = str(stage.snapshots.file(row))
        await stage.engine.request(ops.RestoreRun("other", "tiny", "/m", file, row.sha256))
        assert stage.engine.runs.states["other"] == before

    asyncio.run(story())


def test_a_damaged_file_is_not_whole(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        assert await stage.step()
        (row,) = await stage.history.snapshots(stage.run.id)
        assert await stage.snapshots.whole(row)
        file = stage.snapshots.file(row)
        file.write_bytes(file.read_bytes()[:-1])
        assert not await stage.snapshots.whole(row)
        file.unlink()
        assert not await stage.snapshots.whole(row)

    asyncio.run(story())


def test_an_engine_that_dies_leaves_no_row(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        stage.run.place.advance()
        stage.engine.before = lambda op: stage.engine.die()
        task = await stage.snapshots.begin(stage.run)
        assert task is not None
        await task
        assert await stage.history.snapshots(stage.run.id) == []
        assert await stage.snapshots.begin(stage.run) is None

    asyncio.run(story())


def test_the_last_is_kept_once(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        stage.run.place.advance()
        for _ in range(3):
            await stage.snapshots.keep(stage.run)
        assert stage.engine.count(ops.SnapshotRun) == 1
        stage.run.place.advance()
        await stage.snapshots.keep(stage.run)
        assert [row.position for row in await stage.history.snapshots(stage.run.id)] == [1, 2]

    asyncio.run(story())


def test_files_that_no_row_knows_are_removed_at_the_start(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        assert await stage.step()
        (row,) = await stage.history.snapshots(stage.run.id)
        kept = stage.snapshots.file(row)
        # Of an earlier life that ended before the row was stored, and behind its last snapshot.
        orphan = kept.with_name("00000099.safetensors")
        orphan.write_bytes(b"whole")
        other = kept.parent.parent / "another" / kept.name
        other.parent.mkdir()
        other.write_bytes(b"whole")
        await stage.snapshots.sweep()
        assert kept.exists()
        assert not orphan.exists()
        assert not other.exists()

    asyncio.run(story())


def test_what_is_just_being_written_is_not_removed(stage: Stage) -> None:
    async def story() -> None:
        await stage.begin()
        stage.run.place.advance()
        stored = stage.history.add_snapshot

        async def swept_before(row: SnapshotRow) -> None:
            assert stage.snapshots.file(row).exists()
            await stage.snapshots.sweep()
            await stored(row)

        stage.history.add_snapshot = swept_before  # type: ignore[method-assign]
        await stage.snapshots.keep(stage.run)
        (row,) = await stage.history.snapshots(stage.run.id)
        assert await stage.snapshots.whole(row)

    asyncio.run(story())
