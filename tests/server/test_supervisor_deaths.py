"""Which operation an engine died of, and when the next engine is started: on a stand-in kernel."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from jupyter_tinker.server.engine_client import EngineDied
from jupyter_tinker.server.history import Plan
from jupyter_tinker.server.progress import Tasks
from jupyter_tinker.server.revival import Revival
from jupyter_tinker.server.runs import Run
from jupyter_tinker.server.schema import RunRow, SnapshotRow
from jupyter_tinker.server.supervisor import EngineNotStarted
from jupyter_tinker.server.turns import Turns
from jupyter_tinker.wire import ops
from tests.server import stand_in_kernel
from tests.server.fake_engine import STATUS
from tests.server.stand_in_kernel import BATCH, SNAPSHOT, STEP, Stage

tell = stand_in_kernel.tell


@pytest.mark.parametrize(
    ("asked", "answered", "during"),
    [
        ([BATCH], 0, [True]),
        ([BATCH, STEP, BATCH], 0, [True, False, False]),
        ([BATCH, STEP, BATCH], 1, [True, False]),
        ([SNAPSHOT], 0, [False]),
        ([SNAPSHOT, BATCH, STEP], 0, [False, True, False]),
        ([BATCH, SNAPSHOT, STEP], 1, [False, True]),
        ([STEP, BATCH], 2, []),
    ],
)
def test_the_engine_died_of_the_first_that_it_was_to_do(
    tell: Any, asked: list[ops.Op], answered: int, during: list[bool]
) -> None:
    async def story(stage: Stage) -> None:
        waiting = await stage.ask(*asked)
        for one in waiting[:answered]:
            stage.kernels[0].answer()
            await one
        assert await stage.die(*waiting[answered:]) == during

    tell(story)


def test_a_refusal_is_an_answer(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        first, second = await stage.ask(BATCH, STEP)
        stage.kernels[0].refuse()
        with pytest.raises(ops.OpError, match="no"):
            await first
        assert await stage.die(second) == [True]

    tell(story)


def test_what_nobody_waits_for_is_not_what_it_died_of(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        first, second = await stage.ask(BATCH, STEP)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert await stage.die(second) == [True]

    tell(story)


def test_another_engine_is_asked_nothing_that_was_meant_for_the_last(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        supervisor = stage.supervisor
        first = await supervisor.ensure_started()
        assert supervisor.holds(first)
        await stage.die()
        assert not supervisor.holds(first)
        for _ in range(2):
            with pytest.raises(EngineDied) as died:
                await supervisor.begin(BATCH, generation=first)
            assert not died.value.during
            second = await supervisor.ensure_started()
        assert second == first + 1
        assert stage.kernels[1].asked == []
        assert stage.told == ["started", "the engine died", "started"]

    tell(story)


def test_engines_that_do_nothing_are_started_ever_later(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        for _ in range(9):
            await stage.supervisor.ensure_started()
            await stage.die()
        assert stage.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
        (done,) = await stage.ask(STEP)
        stage.kernels[-1].answer()
        await done
        stage.waits.clear()
        await stage.die()
        await stage.supervisor.ensure_started()
        assert stage.waits == []

    tell(story)


def test_engines_that_die_while_they_get_a_run_back_are_started_ever_later(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        run = Run(RunRow(id="run", base_model="tiny", base_path="/m"), ops.LoraSpec(4, 1))
        snapshot = SnapshotRow(run_id="run", position=1, step=1, file="f", sha256="0")
        revival = Revival(
            supervisor=stage.supervisor,
            turns=Turns(0.5),
            history=Mock(plan=AsyncMock(return_value=Plan(snapshot, []))),
            snapshots=Mock(file=lambda row: row.file),
            checkpoints=Mock(),
            custom_losses=Mock(),
            events=Mock(progress=Tasks()),
            backlog=Mock(),
            log=Mock(),
        )
        for _ in range(5):
            bringing = asyncio.create_task(revival.bring(run))
            await stage.asked("unload_run")
            stage.kernels[-1].answer()
            await stage.asked("restore_run")
            assert await stage.die(bringing) == [False]
        assert stage.waits == [0.5, 1.0, 2.0]
        bringing = asyncio.create_task(revival.bring(run))
        for name in ("unload_run", "restore_run"):
            await stage.asked(name)
            stage.kernels[-1].answer(lora=asdict(run.lora), trainable_parameters=1, step=1)
        await bringing
        (done,) = await stage.ask(STEP)  # something new, at last
        stage.kernels[-1].answer()
        await done
        await stage.die()
        stage.waits.clear()
        await stage.supervisor.ensure_started()
        assert stage.waits == []

    tell(story)


def test_an_engine_that_does_not_start_says_so_to_all_that_wait(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = False
        for _ in range(3):
            with pytest.raises(EngineNotStarted, match="did not start") as failed:
                await stage.supervisor.ensure_started()
            assert not failed.value.during
            assert not stage.supervisor.running
        assert stage.waits == [0.5]
        assert "the engine died" not in stage.told
        stage.starts = True
        assert stage.supervisor.holds(await stage.supervisor.ensure_started())

    tell(story)


def test_many_that_want_an_engine_get_one(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        numbers = await asyncio.gather(*(stage.supervisor.ensure_started() for _ in range(9)))
        assert set(numbers) == {1}
        assert len(stage.kernels) == 1

    tell(story)


def test_a_start_goes_on_when_who_asked_for_it_gives_up(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = None
        supervisor = stage.supervisor
        first = asyncio.create_task(supervisor.ensure_started())
        await stage.asked("start")
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.create_task(supervisor.ensure_started())
        await asyncio.sleep(0)
        assert supervisor.starting
        stage.kernels[0].answer(**asdict(STATUS))
        assert await second == 1
        assert supervisor.status == STATUS
        assert len(stage.kernels) == 1
        await stage.die()
        assert stage.told == ["started", "the engine died"]
        stage.starts = True
        assert await supervisor.ensure_started() == 2

    tell(story)


def test_a_start_that_fails_when_nobody_waits_is_made_up_for(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = None
        first = asyncio.create_task(stage.supervisor.ensure_started())
        await stage.asked("start")
        first.cancel()
        stage.kernels[0].alive = False
        while stage.supervisor.starting:  # noqa: ASYNC110 (a process sets no event when it dies)
            await asyncio.sleep(0)
        assert not stage.supervisor.running
        stage.starts = True
        await stage.supervisor.ensure_started()
        assert stage.told == ["started"]

    tell(story)


def test_no_process_is_left_of_a_start_that_the_loop_cancels(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = None
        waiting = asyncio.create_task(stage.supervisor.ensure_started())
        await stage.asked("start")
        for start in stage.supervisor._starts:
            start.cancel()
        await asyncio.wait([waiting])
        assert not stage.kernels[0].alive
        assert not stage.supervisor.running

    tell(story)


def test_the_end_waits_for_no_start(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = None
        waiting = asyncio.create_task(stage.supervisor.ensure_started())
        await stage.asked("start")
        await stage.supervisor.stop()
        assert not stage.kernels[0].alive
        assert not stage.supervisor.starting
        assert not waiting.done()  # until the process ends
        waiting.cancel()

    tell(story)


def test_the_end_waits_for_no_pause(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        for _ in range(2):
            await stage.supervisor.ensure_started()
            await stage.die()
        stage.rests = True
        waiting = asyncio.create_task(stage.supervisor.ensure_started())
        while not stage.waits:  # noqa: ASYNC110 (it is a stand-in that counts them)
            await asyncio.sleep(0)
        await stage.supervisor.stop()
        assert len(stage.kernels) == 2
        assert not waiting.done()
        waiting.cancel()

    tell(story)


def test_after_the_end_no_engine_is_started(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        (waiting,) = await stage.ask(BATCH)
        await stage.supervisor.stop()
        with pytest.raises(EngineDied, match="shut down"):
            await waiting
        with pytest.raises(TimeoutError):  # the next server will do it
            await asyncio.wait_for(stage.supervisor.ensure_started(), 0.05)
        assert stage.told == ["started"]

    tell(story)
