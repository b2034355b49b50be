"""A run that a person takes back to an earlier step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server.runs import Run
from jupyter_tinker.wire.ops import OpError
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, forward_backward, make_service, optim_step
from tests.server.steered import Stage, story


def test_a_rewound_run_is_what_it_was(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        states = [stage.state]
        for n in range(5):
            await stage.step(n)
            states.append(stage.state)
        for step in (3, 2, 0):
            run = await stage.rewind(step)
            assert stage.state == states[step]
            assert run.step == step
        assert [(b.number, b.step) for b in run.place.branches] == [(1, 3), (2, 2), (3, 0)]
        # What was left is still to be had.
        await stage.rewind(5, 0)
        assert stage.state == states[5]
        event = (await stage.events("rewound"))[-1]
        assert (event.actor, event.step) == ("ada", 5)
        assert event.data == {"step": 5, "branch": 4, "abandoned": {"branch": 3, "step": 0}}

    story(tell, tmp_path)


def test_the_steps_after_a_rewind_are_of_another_branch(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        for n in range(3):
            await stage.step(n)
        await stage.rewind(1)
        for n in range(2):
            await stage.step(n)
        rows = [(row.branch, row.step) for row in await stage.rows()]
        assert rows == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]

    story(tell, tmp_path)


def test_a_rewind_in_the_midst_of_a_step_skips_that_step(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        at_one = stage.state
        await stage.step(2)
        await stage.steer(guards={"non_finite": True})  # which is not why the step is skipped
        await stage.ask(forward_backward(3))
        await stage.rewind(1)
        assert stage.state == at_one
        await stage.ask(forward_backward(4))  # of the same step
        metrics = (await stage.ask(optim_step()))["metrics"]
        assert (metrics["skipped"], metrics["optimizer_step"]) == (1.0, 1)
        assert stage.state == at_one
        row = (await stage.rows())[-1]
        assert row.branch == 1
        assert row.skipped is not None
        assert "rewound to step 1" in row.skipped
        assert not (await stage.the_run()).controls.paused
        assert "skipped" not in await stage.step(5)

    story(tell, tmp_path)


def test_a_rewind_between_steps_skips_none(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        for n in range(2):
            await stage.step(n)
        await stage.rewind(1)
        assert "skipped" not in await stage.step(3)

    story(tell, tmp_path)


def test_a_rewind_to_what_is_not_there(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        before = stage.state
        for step, branch, sentence in ((2, None, "no step 2"), (1, 7, "no branch 7")):
            with pytest.raises(OpError, match=sentence):
                await stage.rewind(step, branch)
        run = await stage.the_run()
        assert stage.state == before
        assert (run.place.branch, run.step) == (0, 1)

    story(tell, tmp_path)


def test_a_rewind_of_a_paused_run_leaves_it_paused(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        for n in range(2):
            await stage.step(n)
        await stage.steer(paused=True)
        waits = await stage.submit(forward_backward(3))
        run = await stage.rewind(1)
        assert run.held_back
        assert await stage.pending(waits)
        await stage.steer(paused=False)
        await stage.result(waits)
        assert (await stage.ask(optim_step()))["metrics"]["optimizer_step"] == 2

    story(tell, tmp_path)


@pytest.mark.parametrize("written", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("paused", [False, True], ids=["resumed", "paused"])
def test_what_is_changed_while_a_rewind_is_written_holds(
    tmp_path: Path, paused: bool, written: bool
) -> None:
    """`written`: it is changed behind the rewind's transaction, else before."""
    seen: list[Any] = []

    async def tell(stage: Stage) -> None:
        for n in range(3):
            await stage.step(n)
        await stage.steer(learning_rate_scale=0.5, ramp_steps=10, paused=not paused)
        write = stage.service.history.write

        async def and_meanwhile(works: Any) -> None:
            if written:
                await write(works)
            await stage.steer(paused=paused, weight_decay=0.25)
            if not written:
                await write(works)

        stage.service.history.write = and_meanwhile  # type: ignore[method-assign]
        waits = await stage.submit(forward_backward(5))
        run = await stage.rewind(1)
        assert run.held_back == paused
        assert await stage.pending(waits) == paused
        if not paused:
            await stage.ask(optim_step())
        seen.append(run.controls)

    async def stored() -> Run:
        service = make_service(tmp_path, FakeEngine())
        service.start("here")
        try:
            return await service.run(RUN)
        finally:
            await service.stop()

    story(tell, tmp_path)
    (controls,) = seen
    assert (controls.paused, controls.weight_decay, controls.ramp.start) == (paused, 0.25, 1)
    assert asyncio.run(stored()).controls == controls


def test_a_run_that_is_held_back_never_holds_up_the_server(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        run = await stage.the_run()
        run.controls = run.controls.pause("nobody was told")
        assert run.released.is_set()
        waits = await stage.submit(forward_backward(2))
        assert await stage.pending(waits)
        await stage.steer(paused=False)
        await stage.result(waits)

    story(tell, tmp_path)


def test_a_rewind_while_there_is_no_engine_waits_for_one(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        at_one = stage.state
        await stage.step(2)
        stage.engine.die()
        run = await stage.rewind(1)
        assert run.step == 1
        await stage.ask(forward_backward(3, only=True))
        assert stage.state == at_one

    story(tell, tmp_path)
