"""Sweeps over copies of runs, on a fake engine whose losses follow the learning rates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jupyter_tinker.server.schema import CustomLossRow
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.lr_find import SweepSettings
from tests.server import sweeps
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Client, forward_backward, optim_step
from tests.server.sweeps import (
    SETTINGS,
    copies,
    events,
    finished,
    first_tokens,
    of_copies,
    requests,
    sweep,
)

pytest_plugins = ["pytest_jupyter.jupyter_server"]
engine, service, client = sweeps.engine, sweeps.service, sweeps.client


async def test_a_sweep_finds_where_the_loss_falls(service: TinkerService, client: Client) -> None:
    begun = await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    assert (begun["status"], begun["stage"], begun["points"]) == ("running", "copying", [])
    state = await finished(service)
    assert (state["status"], state["diverged"], state["message"]) == ("done", True, None)
    assert (state["step"], state["batches"], state["actor"]) == (3, 3, "ada")
    assert state["settings"] == SETTINGS.model_dump()
    assert 3e-4 < state["suggestion"]["steepest"] < 5e-3
    assert state["suggestion"]["lowest"] < 0.2
    points = state["points"]
    assert [point["batch"] for point in points[:4]] == [0, 1, 2, 0]
    assert [point["loss"] for point in points[:4]] == [4.0, 5.0, 6.0, 4.0]  # per unit of weight
    assert [point["adjusted"] for point in points[:4]] == [5.0] * 4
    assert len(points) < SETTINGS.steps


async def test_it_steps_as_the_client_does_but_for_the_learning_rate(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    state = await sweep(service, min=1e-5, max=1e-2, steps=20)
    made = [op.adam for op in of_copies(engine, ops.OptimStep)]
    own = ops.AdamParams(0.01, 0.8, 0.95, 1e-8, 0.0, 0.5)
    assert [replace(adam, learning_rate=0.01) for adam in made] == [own] * 19
    rates = [point["learning_rate"] for point in state["points"]]
    assert [adam.learning_rate for adam in made] == rates[:-1]
    assert (rates[0], rates[-1]) == (pytest.approx(1e-5), pytest.approx(1e-2))


async def test_what_a_person_has_set_is_what_it_steps_with(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    change = {"grad_clip_norm": 0.125, "weight_decay": 0.5, "learning_rate_scale": 100.0}
    await service.steering.change(RUN, change, by="ada")
    await sweep(service, steps=10, max=1e-3)
    made = [op.adam for op in of_copies(engine, ops.OptimStep)]
    assert {(adam.grad_clip_norm, adam.weight_decay) for adam in made} == {(0.125, 0.5)}
    assert made[0].learning_rate == pytest.approx(1e-6)


async def test_the_newest_batches_are_gone_through(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await client.ask(forward_backward(10, "ppo"))
    await client.step(11)
    await client.ask(forward_backward(30))  # of a step that is not made yet
    state = await sweep(service, batches=2, steps=10, max=1e-3)
    assert state["batches"] == 2
    asked = requests(engine)
    measured, swept = asked[:3], asked[3:]
    assert all(request.forward_only for request in measured)
    assert not any(request.forward_only for request in swept)
    # What was accumulated for one step is one batch: the third step's, and the two of the fourth.
    assert first_tokens(engine) == [2, 10, 11] * 6
    # What the client has accumulated is no part of the first step.
    kinds = [type(op) for op in engine.ops if "@" in getattr(op, "run", "")]
    assert kinds[:4] == [ops.UnloadRun, ops.RestoreRun, ops.ZeroGrad, ops.ForwardBackward]
    assert [request.loss_fn for request in asked[:3]] == ["cross_entropy", "ppo", "cross_entropy"]
    assert state["points"][1]["loss"] == pytest.approx(4.0 + 10.5)


async def test_batches_before_the_first_step(service: TinkerService, engine: FakeEngine) -> None:
    client = Client(service)
    await client.create()
    for n in range(4):
        await client.ask(forward_backward(n))
    state = await sweep(service, batches=3, steps=10, max=1e-3)
    assert (state["status"], state["batches"], state["step"]) == ("done", 3, 0)
    first = of_copies(engine, ops.OptimStep)[0].adam
    assert first == replace(ops.AdamParams(), learning_rate=first.learning_rate)


async def test_a_client_s_own_loss_comes_along(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    loss = CustomLossRow(id="mine", session_id="s", definition=b"{}", created_at=1.0)
    service._database.run(lambda db: db.merge(loss))

    def asked(run: str, seq_id: int) -> tuple[str, bytes, bool]:
        request = pb.ForwardBackwardRequest(model_id=run, seq_id=seq_id, loss_fn="custom")
        request.loss_fn_config_v2["loss_id"].text = "mine"
        request.data.add().model_input.add().encoded_text.tokens = bytes(4)
        return "forward_backward", request.SerializeToString(), False

    await client.ask(asked)
    await client.ask(optim_step())
    assert (await sweep(service, batches=1, steps=10, max=1e-3))["status"] == "done"
    asked_of_copies = of_copies(engine, ops.ForwardBackward)
    assert [op.custom_loss for op in asked_of_copies] == ["{}"] * 11


async def test_batches_of_an_abandoned_branch_or_a_dropped_step_do_not_count(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await service.steering.rewind(RUN, 1, None, by="ada")
    await client.ask(forward_backward(7, "infinite"))
    await client.ask(optim_step())
    await client.ask(forward_backward(8))
    await client.ask(forward_backward(9, "bad"))
    await client.ask(optim_step())
    assert (await sweep(service, steps=10, max=1e-3))["batches"] == 1
    assert first_tokens(engine) == [0] * 11


async def test_no_descent_no_suggestion(service: TinkerService, client: Client) -> None:
    state = await sweep(service, max=1e-4)
    assert (state["status"], state["suggestion"]) == ("done", None)
    assert "did not fall" in state["message"]


async def test_a_sweep_that_ends_in_the_fall_says_so(
    service: TinkerService, client: Client
) -> None:
    state = await sweep(service, max=2e-3)
    assert (state["status"], state["diverged"]) == ("done", False)
    assert "higher `max`" in state["message"]


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        (ops.ForwardBackward, {"loss_sum": None, "not_finite": "a loss is not finite"}),
        (ops.OptimStep, {"skipped": "the step would make the weights infinite"}),
    ],
)
async def test_what_is_not_finite_ends_it(
    service: TinkerService, client: Client, engine: FakeEngine, kind: type[Any], fault: Any
) -> None:
    do = engine.runs.do

    def faulty(op: ops.Op) -> Any:
        result = do(op)
        if isinstance(op, kind) and "@" in op.run and len(of_copies(engine, ops.OptimStep)) > 30:
            result = {**result[0], **fault}, result[1]
        return result

    engine.runs.do = faulty  # type: ignore[method-assign]
    state = await sweep(service)
    assert (state["status"], state["diverged"]) == ("done", True)
    assert len(state["points"]) in (31, 32)
    assert state["suggestion"] is not None
    assert copies(engine) == []


async def test_what_happened_is_told(service: TinkerService, client: Client) -> None:
    await sweep(service, steps=10, max=0.01)
    begun, done = events(service, "lr_find_started", "lr_find_done")
    assert (begun.kind, begun.run_id, begun.actor, begun.step) == ("lr_find_started", RUN, "ada", 3)
    assert begun.data == {"settings": SweepSettings(steps=10, max=0.01).model_dump()}
    state = await service.lr_finder.state(RUN)
    assert (done.kind, done.data["status"]) == ("lr_find_done", "done")
    assert done.data["suggestion"] == state["suggestion"]
