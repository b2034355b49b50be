"""What a person does to a run, and what becomes of what its client asks for meanwhile."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select

from jupyter_tinker.server.checkpoints import UnknownCheckpoint
from jupyter_tinker.server.queue_state import queue_state, state_of
from jupyter_tinker.server.registry import UnknownRun
from jupyter_tinker.server.runs import Run
from jupyter_tinker.server.schema import EventRow, SnapshotRow, StepRow
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.controls import parse_change
from jupyter_tinker.wire.ops import OpError
from tests.server.fake_engine import FakeEngine
from tests.server.fake_runs import BAD, INFINITE
from tests.server.one_service import (
    RUN,
    Client,
    add_session,
    ask,
    create_from,
    forward_backward,
    make_service,
    optim_step,
    read,
)


class Stage(Client):
    """A run, its client, and somebody who steers it."""

    def __init__(self, folder: Path) -> None:
        self.engine = FakeEngine()
        super().__init__(make_service(folder, self.engine))
        add_session(self.service._database)

    async def begin(self) -> None:
        self.service.start("here")
        await self.create()

    @property
    def state(self) -> Any:
        """Of the run in the engine."""
        return self.engine.runs.states[RUN]

    async def the_run(self) -> Run:
        return await self.service.run(RUN)

    async def steer(self, **change: Any) -> Run:
        return await self.service.steering.change(RUN, parse_change(change), by="ada")

    async def rewind(self, step: int, branch: int | None = None) -> Run:
        return await self.service.steering.rewind(RUN, step, branch, by="ada")

    async def fork(self, step: int, branch: int | None = None) -> str:
        return str(await self.service.steering.fork(RUN, step, branch, by="ada"))

    async def rows(self) -> list[StepRow]:
        return await self.service.journal.steps(RUN, 0, 1000)

    async def events(self, *kinds: str) -> list[EventRow]:
        await self.service.futures.stored()
        query = select(EventRow).where(EventRow.kind.in_(kinds)).order_by(EventRow.id)
        return await self.service._database.call(lambda db: list(db.scalars(query)))

    def learning_rates(self) -> list[float]:
        return [op.adam.learning_rate for op in self.engine.ops if isinstance(op, ops.OptimStep)]


def story(tell: Callable[[Stage], Awaitable[None]], folder: Path) -> Stage:
    async def whole() -> Stage:
        stage = Stage(folder)
        await stage.begin()
        try:
            await tell(stage)
        finally:
            await stage.service.stop()
        return stage

    return asyncio.run(asyncio.wait_for(whole(), 15))


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


# Rules


def test_a_step_that_is_not_finite_is_skipped_and_said(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        before = stage.state
        batch = await stage.ask(forward_backward(2))
        batch = await stage.ask(forward_backward(3, INFINITE))
        assert math.isfinite(batch["loss:sum"])  # what was computed comes back
        metrics = (await stage.ask(optim_step()))["metrics"]
        assert metrics["skipped"] == 1.0
        assert metrics["optimizer_step"] == 1
        assert "update_norm" not in metrics
        assert stage.state == before
        row = (await stage.rows())[-1]
        assert (row.skipped, row.datums, row.tokens) == ("the gradient is not finite", 2, 20)
        (event,) = await stage.events("guard")
        assert event.data == {
            "rule": "non_finite", "reason": "the gradient is not finite", "paused": False,
        }  # fmt: skip
        assert "skipped" not in await stage.step(4)

    story(tell, tmp_path)


def test_a_guard_pauses_the_run(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        run = await stage.steer(guards={"non_finite": True})
        await stage.ask(forward_backward(1, INFINITE))
        assert (await stage.ask(optim_step()))["metrics"]["skipped"] == 1.0
        assert run.held_back
        assert run.controls.paused_because == "the gradient is not finite"
        (event,) = await stage.events("guard")
        assert event.data["paused"]
        (event,) = await stage.events("paused")
        assert (event.actor, event.data["reason"]) == (None, "the gradient is not finite")

    story(tell, tmp_path)


def test_a_plateau_pauses_the_run(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        run = await stage.steer(guards={"plateau": {"min_delta": 1e6, "patience": 3}})
        for n in range(4):
            assert not run.held_back
            await stage.step(n)
        assert run.held_back
        assert (await stage.events("guard"))[0].data["rule"] == "plateau"

    story(tell, tmp_path)


def test_a_step_whose_batch_was_refused_fails(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        before = stage.state
        assert "error" in await stage.ask(forward_backward(1, BAD))
        await stage.ask(forward_backward(2))
        failed = await stage.ask(optim_step())
        assert "forward_backward number 1" in failed["error"]
        assert failed["category"] == "user"
        assert stage.state == before
        assert await stage.rows() == []
        assert (await stage.step(3))["optimizer_step"] == 1

    story(tell, tmp_path)


def test_what_failed_is_told_to_who_watches(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        refused = await stage.ask(forward_backward(1, BAD))
        await stage.ask(optim_step())  # not done because of that, which was told
        await stage.step(3)
        await stage.ask(forward_backward(1, BAD, only=True))
        wrong = await stage.ask(ask("optim_step"))
        told = await stage.events("request_failed")
        said = [(event.data["request"], event.data["seq_id"], event.step) for event in told]
        assert said == [("forward_backward", 1, 0), ("forward", 5, 1), ("optim_step", 6, 1)]
        errors = [(event.data["error"], event.data["category"]) for event in told]
        assert errors[0] == (refused["error"], refused["category"])
        assert errors[2] == (wrong["error"], "user")
        assert {event.run_id for event in told} == {RUN}

    story(tell, tmp_path)


def test_a_run_that_could_not_be_created_ends_as_failed(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        def refuse(op: ops.Op) -> None:
            if isinstance(op, ops.CreateRun):
                raise OpError("there is no such model", "server")

        stage.engine.before = refuse
        answer = await stage.create(1)
        assert answer["error"] == "there is no such model"
        (ended,) = await stage.events("run_ended")
        reason = "This run could not be created."
        assert ended.data == {"reason": reason, "failed": True, "error": answer["error"]}
        assert await stage.events("request_failed") == []
        stage.engine.before = lambda op: None
        assert "error" in await stage.ask(forward_backward(1)), "it has ended"
        assert await stage.events("request_failed") == []

    story(tell, tmp_path)


# Rewinding


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


# Forks


def test_a_fork_begins_where_its_step_was(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        at_one = stage.state
        await stage.step(2)
        now = stage.state
        path = await stage.fork(1)
        assert path == f"tinker://{RUN}/weights/step=1+branch=0"
        assert await stage.fork(1, 0) == path
        assert stage.engine.count(ops.SaveCheckpoint) == 1
        assert stage.state == now  # beside what the run does
        made = read(await _done(stage, await create_from(stage.service, path, 1)))
        assert stage.engine.runs.states[made["model_id"]] == at_one
        assert set(stage.engine.runs.states) == {RUN, made["model_id"]}
        (event, _) = await stage.events("forked")
        assert (event.actor, event.step, event.data) == ("ada", 1, {"path": path})

    story(tell, tmp_path)


@pytest.mark.parametrize("dropped", [True, False], ids=["dropped", "damaged"])
def test_a_snapshot_that_goes_while_a_fork_is_made_of_it(tmp_path: Path, dropped: bool) -> None:
    async def tell(stage: Stage) -> None:
        for n in range(4):
            await stage.step(n)
        history, service = stage.service.history, stage.service
        for task in list(service.snapshots._writing.values()):
            await task
        newest = (await history.snapshots(RUN))[-1]
        assert newest.step > 0

        def lose(op: ops.Op) -> None:
            if isinstance(op, ops.RestoreRun) and op.file.endswith(newest.file):
                if dropped:
                    gone = delete(SnapshotRow).where(SnapshotRow.position == newest.position)
                    service._database.run(lambda db: db.execute(gone))
                service.snapshots.file(newest).unlink()

        stage.engine.before = lose
        path = await stage.fork(newest.step)
        made = read(await _done(stage, await create_from(service, path, 1)))
        assert stage.engine.runs.states[made["model_id"]].step == newest.step
        guards = [event.data for event in await stage.events("guard")]
        if dropped:
            assert guards == []
        else:
            (guard,) = guards
            assert (guard["rule"], guard["paused"]) == ("snapshot", False)
            assert "damaged" in guard["reason"]

    story(tell, tmp_path)


def test_a_checkpoint_and_its_event_are_stored_together(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        record = stage.service.events.record

        def fail(db: Any, run_id: Any, kind: Any, **data: Any) -> Any:
            if kind == "checkpoint_saved":
                raise RuntimeError("it cannot be told")
            return record(db, run_id, kind, **data)

        stage.service.events.record = fail  # type: ignore[method-assign]
        assert "it cannot be told" in (await stage.ask(ask("save_weights", path="a")))["error"]
        assert (await stage.service.checkpoints.list())[1] == 0
        stage.service.events.record = record  # type: ignore[method-assign]
        await stage.ask(ask("save_weights", path="a"))
        (event,) = await stage.events("checkpoint_saved")
        assert (event.step, event.data) == (1, {"path": f"tinker://{RUN}/weights/a"})

    story(tell, tmp_path)


async def _done(stage: Stage, request_id: str) -> Any:
    while (result := await stage.service.futures.poll(request_id, 1.0)) is None:
        pass
    return result


def test_a_step_can_be_loaded_without_asking_first(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        at_one = stage.state
        await stage.step(2)
        await stage.rewind(1)
        await stage.step(3)
        on_one = stage.state
        names = {"step=2": on_one, "step=2+branch=1": on_one, "step=1+branch=0": at_one}
        for number, (name, state) in enumerate(names.items(), 1):
            path = f"tinker://{RUN}/weights/{name}"
            made = read(await _done(stage, await create_from(stage.service, path, number)))
            assert stage.engine.runs.states[made["model_id"]] == state
        path = f"tinker://{RUN}/weights/step=2+branch=0"
        await stage.ask(ask("load_weights", path=path, optimizer=False))
        assert (stage.state.step, stage.state.moments) == (0, "")
        for name in ("step=9", "step=2+branch=7"):
            with pytest.raises(UnknownCheckpoint, match="There is no checkpoint"):
                await create_from(stage.service, f"tinker://{RUN}/weights/{name}", 9)
        with pytest.raises(UnknownCheckpoint):
            await create_from(stage.service, "tinker://nobody/weights/step=1", 9)

    story(tell, tmp_path)


def test_a_fork_of_a_step_number_that_came_twice_is_the_newer(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        path = await stage.fork(1)
        await stage.ask(ask("load_weights", path=path, optimizer=False))  # counts from 0 again
        await stage.step(2)
        newer = stage.state
        assert newer.step == 1
        path = await stage.fork(1)
        made = read(await _done(stage, await create_from(stage.service, path, 1)))
        assert stage.engine.runs.states[made["model_id"]] == newer

    story(tell, tmp_path)


@pytest.mark.parametrize("name", ["step=3", "step=0+branch=1"])
def test_the_names_of_steps_are_not_for_clients(tmp_path: Path, name: str) -> None:
    async def tell(stage: Stage) -> None:
        refused = await stage.ask(ask("save_weights", path=name))
        assert refused["category"] == "user"
        assert "another name" in refused["error"]
        saved = await stage.ask(ask("save_weights_for_sampler", path=name))
        assert saved["path"].endswith(name)

    story(tell, tmp_path)
