"""What a run does by itself: it skips steps, guards pause it, and it tells what failed."""

from __future__ import annotations

import math
from pathlib import Path

from jupyter_tinker.wire import ops
from jupyter_tinker.wire.ops import OpError
from tests.server.fake_runs import BAD, INFINITE
from tests.server.one_service import RUN, ask, forward_backward, optim_step
from tests.server.steered import Stage, story


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
