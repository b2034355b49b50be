"""What a person sets of a run, and what a pause does to what its client asks for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jupyter_tinker.server.queue_state import queue_state, state_of
from jupyter_tinker.server.registry import UnknownRun
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.controls import parse_change
from jupyter_tinker.wire.ops import OpError
from tests.server.fake_engine import FakeEngine
from tests.server.fake_runs import INFINITE
from tests.server.one_service import RUN, ask, forward_backward, make_service, optim_step
from tests.server.steered import Stage, story

# Controls


def test_controls_are_in_force_at_the_next_step(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(learning_rate=0.25)
        await stage.steer(learning_rate_scale=0.5)
        metrics = await stage.step(learning_rate=0.25)
        assert (metrics["learning_rate"], metrics["learning_rate_requested"]) == (0.125, 0.25)
        await stage.steer(learning_rate=1.0, grad_clip_norm=2.0, weight_decay=0.5)
        metrics = await stage.step(learning_rate=0.25, grad_clip_norm=1.0)
        assert (metrics["learning_rate"], metrics["learning_rate_requested"]) == (1.0, 0.25)
        assert (metrics["grad_clip_norm"], metrics["grad_clip_norm_requested"]) == (2.0, 1.0)
        assert (metrics["weight_decay"], metrics["weight_decay_requested"]) == (0.5, 0.0)
        await stage.steer(reset=True)
        metrics = await stage.step(learning_rate=0.25)
        assert metrics["learning_rate"] == metrics["learning_rate_requested"] == 0.25
        assert metrics["weight_decay"] == 0.0
        rows = await stage.rows()
        assert [row.learning_rate for row in rows] == [0.25, 0.125, 1.0, 0.25]
        assert {row.learning_rate_requested for row in rows} == {0.25}
        # What is told is what the engine was given.
        assert stage.learning_rates() == [0.25, 0.125, 1.0, 0.25]

    story(tell, tmp_path)


def test_a_ramp_is_walked_step_by_step(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(learning_rate=1.0)
        await stage.steer(learning_rate_scale=3.0, ramp_steps=4)
        rates = [(await stage.step(learning_rate=1.0))["learning_rate"] for _ in range(6)]
        assert rates == pytest.approx([1.5, 2.0, 2.5, 3.0, 3.0, 3.0])
        # A skipped step is no step.
        await stage.steer(learning_rate_scale=1.0, ramp_steps=2)
        await stage.ask(forward_backward(1, INFINITE))
        assert (await stage.ask(optim_step(learning_rate=1.0)))["metrics"]["skipped"] == 1.0
        rates = [(await stage.step(learning_rate=1.0))["learning_rate"] for _ in range(2)]
        assert rates == pytest.approx([2.0, 1.0])

    story(tell, tmp_path)


def test_a_change_is_recorded_with_who_made_it(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step()
        run = await stage.steer(learning_rate_scale=0.5)
        assert run.controls.changed_by == "ada"
        await stage.steer(learning_rate_scale=0.5)  # changes nothing
        (event,) = await stage.events("control_changed")
        assert (event.run_id, event.actor, event.step) == (RUN, "ada", 1)
        assert event.data["before"] == {"learning_rate_scale": 1.0}
        assert event.data["after"] == {"learning_rate_scale": 0.5}

    story(tell, tmp_path)


def test_controls_outlive_the_server(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step()
        await stage.steer(learning_rate=0.5, ramp_steps=10)
        await stage.step(learning_rate=0.25)
        await stage.steer(paused=True)

    story(tell, tmp_path)

    async def whole() -> None:
        service = make_service(tmp_path, FakeEngine())
        service.start("here")
        run = await service.run(RUN)
        assert run.held_back
        assert run.controls.paused_because == "ada paused it"
        assert run.controls.learning_rate == 0.5
        asked = ops.AdamParams(learning_rate=0.25)
        assert run.controls.adam(asked, step=run.step).learning_rate == pytest.approx(0.3)
        await service.stop()

    asyncio.run(whole())


def test_what_cannot_be_steered(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        with pytest.raises(UnknownRun):
            await stage.service.steering.change("nobody", parse_change({"paused": True}), by="a")
        run = await stage.the_run()
        run.end("it is over")
        for deed in (stage.steer(paused=True), stage.rewind(0)):
            with pytest.raises(OpError, match="it is over"):
                await deed

    story(tell, tmp_path)


# Pauses


def test_a_paused_run_begins_no_training_and_goes_on_where_it_was(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        run = await stage.steer(paused=True)
        assert state_of(stage.service, run.row) == "paused"
        batch = await stage.submit(forward_backward(2))
        step = await stage.submit(optim_step())
        assert await stage.pending(batch)
        assert await stage.pending(step)
        # It says why at once.
        waits = queue_state(stage.service, batch)
        assert waits["queue_state"] == "paused_capacity"
        assert waits["queue_state_reason"] == "the run is paused: ada paused it"
        assert stage.engine.count(ops.ForwardBackward) == 1
        await stage.steer(paused=False)
        assert (await stage.result(step))["metrics"]["optimizer_step"] == 2
        assert queue_state(stage.service, batch) == {"queue_state": "active"}
        assert [event.kind for event in await stage.events("paused", "resumed")] == (
            ["paused", "resumed"]
        )

    story(tell, tmp_path)


def test_a_pause_in_the_midst_of_a_step_holds_its_optim_step(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.ask(forward_backward(1))
        await stage.steer(paused=True)
        step = await stage.submit(optim_step(learning_rate=0.25))
        assert await stage.pending(step)
        await stage.steer(learning_rate=0.5)  # controls can be changed meanwhile
        await stage.steer(paused=False)
        assert (await stage.result(step))["metrics"]["learning_rate"] == 0.5

    story(tell, tmp_path)


def test_a_paused_run_can_be_saved_and_evaluated(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        await stage.steer(paused=True)
        assert "loss:sum" in await stage.ask(forward_backward(2, only=True))
        assert (await stage.ask(ask("save_weights", path="a")))["path"].endswith("/weights/a")
        copy = ask("save_weights_for_sampler", sampling_session_seq_id=0)
        assert "sampling_session_id" in await stage.ask(copy)
        load = await stage.submit(
            ask("load_weights", path=f"tinker://{RUN}/weights/a", optimizer=True)
        )
        save = await stage.submit(ask("save_weights", path="b"))
        assert await stage.pending(load)
        assert await stage.pending(save)  # in its order
        await stage.steer(paused=False)
        assert (await stage.result(save))["path"].endswith("/weights/b")

    story(tell, tmp_path)


def test_an_operation_that_is_begun_is_not_held_back(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        stage.engine.trains.clear()
        batch = await stage.submit(forward_backward(1))
        await asyncio.sleep(0.02)
        run = await stage.steer(paused=True)
        assert state_of(stage.service, run.row) == "training"
        stage.engine.trains.set()
        assert "loss:sum" in await stage.result(batch)
        assert state_of(stage.service, run.row) == "paused"

    story(tell, tmp_path)


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_steps_and_then_a_pause(tmp_path: Path, count: int) -> None:
    async def tell(stage: Stage) -> None:
        await stage.steer(paused=True)
        run = await stage.steer(steps=count)
        assert run.controls.steps_until_pause == count
        for n in range(count):
            assert (await stage.step(n))["optimizer_step"] == n + 1
        waits = await stage.submit(forward_backward(9))
        assert await stage.pending(waits)
        reason = "the step asked" if count == 1 else f"the {count} steps asked"
        assert run.controls.paused_because is not None
        assert run.controls.paused_because.startswith(reason)
        assert (await stage.events("paused"))[-1].data["reason"] == run.controls.paused_because
        await stage.steer(paused=False)
        await stage.result(waits)

    story(tell, tmp_path)


def test_a_skipped_step_is_none_of_those_asked_for(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        run = await stage.steer(steps=2)
        await stage.step(1)
        await stage.ask(forward_backward(2, INFINITE))
        await stage.ask(optim_step())
        assert run.controls.steps_until_pause == 1
        assert not run.held_back
        await stage.step(3)
        assert run.held_back

    story(tell, tmp_path)


def test_a_pause_holds_what_is_about_to_begin(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        run = await stage.the_run()
        async with run.lock:  # as while it is rewound
            waits = await stage.submit(forward_backward(1))
            await asyncio.sleep(0.01)
            await stage.steer(paused=True)
        assert await stage.pending(waits)
        await stage.steer(paused=False)
        await stage.result(waits)

    story(tell, tmp_path)


def test_an_ended_run_is_not_held_back(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        run = await stage.steer(paused=True)
        waits = await stage.submit(optim_step())
        assert await stage.pending(waits)
        run.end("it is over")
        assert (await stage.result(waits))["error"] == "it is over"

    story(tell, tmp_path)
