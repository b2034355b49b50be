"""Sweeps over copies of runs, on a fake engine whose losses follow the learning rates."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete

from jupyter_tinker.server import lr_finder
from jupyter_tinker.server.lr_finder import SweepUnderWay
from jupyter_tinker.server.registry import UnknownRun
from jupyter_tinker.server.schema import (
    CustomLossRow,
    EventRow,
    OperationRow,
    PayloadRow,
    RunRow,
    StepRow,
)
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.lr_find import SweepSettings
from tests.server.fake_engine import FakeEngine
from tests.server.fake_runs import FakeRuns
from tests.server.one_service import (
    RUN,
    Client,
    add_session,
    ask,
    forward_backward,
    make_service,
    optim_step,
)

pytest_plugins = ["pytest_jupyter.jupyter_server"]

SETTINGS = SweepSettings()
WEIGHT = 2.0


class Landscape(FakeRuns):
    """A copy's loss falls by 0.1 at each step with a learning rate around 1e-3, and trebles at each
    one above 0.1. A batch is as hard as its first token."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[str, float] = {}
        self.start = 4.0
        self.weight = WEIGHT

    def _forward_backward(self, op: ops.ForwardBackward) -> Any:
        result, buffers = super()._forward_backward(op)
        if "@" in op.run:
            hard = _first_token(pb.ForwardBackwardRequest.FromString(op.body))
            loss = (self.losses.setdefault(op.run, self.start) + hard) * WEIGHT
            finite = loss if math.isfinite(loss) else None
            result = {**result, "loss_sum": finite, "weight_sum": self.weight}
        return result, buffers

    def _optim_step(self, op: ops.OptimStep) -> Any:
        if "@" in op.run:
            rate = op.adam.learning_rate
            if 3e-4 < rate < 3e-3:
                self.losses[op.run] -= 0.1
            elif rate > 0.1:
                self.losses[op.run] *= 3
        return super()._optim_step(op)


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine()
    made.runs = Landscape()
    return made


@pytest.fixture
def service(tmp_path: Path, engine: FakeEngine, jp_asyncio_loop: Any) -> Iterator[TinkerService]:
    made = make_service(tmp_path, engine)
    add_session(made._database)

    async def start() -> None:
        made.start("here")

    jp_asyncio_loop.run_until_complete(start())
    yield made
    jp_asyncio_loop.run_until_complete(made.stop())


@pytest.fixture
def client(service: TinkerService, jp_asyncio_loop: Any) -> Client:
    """Of a run that has made three steps."""
    made = Client(service)
    jp_asyncio_loop.run_until_complete(_three_steps(made))
    return made


async def _three_steps(client: Client) -> None:
    await client.create()
    for n in range(3):
        await client.step(n, learning_rate=0.01, beta1=0.8, grad_clip_norm=0.5)


def copies(engine: FakeEngine) -> list[str]:
    """What the engine holds beside runs of clients."""
    return [name for name in engine.runs.states if "@" in name]


def of_copies(engine: FakeEngine, kind: type[Any]) -> list[Any]:
    return [op for op in engine.ops if isinstance(op, kind) and "@" in op.run]


def _requests(engine: FakeEngine) -> list[pb.ForwardBackwardRequest]:
    made = of_copies(engine, ops.ForwardBackward)
    return [pb.ForwardBackwardRequest.FromString(op.body) for op in made]


def _first_token(request: pb.ForwardBackwardRequest) -> int:
    return int(np.frombuffer(request.data[0].model_input[0].encoded_text.tokens, "<i4")[0])


def _first_tokens(engine: FakeEngine) -> list[int]:
    return [_first_token(request) for request in _requests(engine)]


async def finished(service: TinkerService, run: str = RUN) -> dict[str, Any]:
    sweep = service.lr_finder._sweeps[run].task
    assert sweep is not None
    await asyncio.wait_for(sweep, 10)
    return await service.lr_finder.state(run)


async def sweep(service: TinkerService, **settings: Any) -> dict[str, Any]:
    await service.lr_finder.begin(RUN, SweepSettings(**settings), by="ada")
    return await finished(service)


def events(service: TinkerService, *kinds: str) -> list[EventRow]:
    rows = service._database.run(lambda db: db.query(EventRow).order_by(EventRow.id).all())
    return [row for row in rows if row.kind in kinds]


# What is found


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
    asked = _requests(engine)
    measured, swept = asked[:3], asked[3:]
    assert all(request.forward_only for request in measured)
    assert not any(request.forward_only for request in swept)
    # What was accumulated for one step is one batch: the third step's, and the two of the fourth.
    assert _first_tokens(engine) == [2, 10, 11] * 6
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
    assert _first_tokens(engine) == [0] * 11


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


# What it leaves alone


async def test_nothing_of_the_original_is_touched(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await client.ask(forward_backward(5))  # accumulated, for a step to come

    def stored() -> Any:
        tables = (RunRow, OperationRow, PayloadRow, StepRow)
        return service._database.run(
            lambda db: [
                [{c.name: getattr(row, c.name) for c in table.__table__.columns} for row in rows]
                for table in tables
                if (rows := db.query(table).all())
            ]
        )

    state, rows = engine.runs.states[RUN], stored()
    assert state.gradients
    place = asdict(service.registry.known(RUN).place)  # type: ignore[union-attr]
    assert (await sweep(service))["status"] == "done"
    assert engine.runs.states == {RUN: state}
    assert asdict(service.registry.known(RUN).place) == place  # type: ignore[union-attr]
    assert stored() == rows


async def test_a_client_that_trains_on_gets_what_it_would_have(
    tmp_path: Path, service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    beside = [await client.step(n) for n in range(3, 9)]
    state = await finished(service)
    assert (state["status"], state["step"]) == ("done", 3)
    positions = [n for n, op in enumerate(engine.ops) if isinstance(op, ops.OptimStep)]
    turns = ["@" in engine.ops[n].run for n in positions]  # type: ignore[attr-defined]
    first, last = turns.index(True), len(turns) - 1 - turns[::-1].index(True)
    assert False in turns[first:last]  # the client had its turns meanwhile

    alone = FakeEngine()
    other = make_service(tmp_path / "alone", alone)
    add_session(other._database)
    other.start("there")
    twin = Client(other)
    await _three_steps(twin)
    assert [await twin.step(n) for n in range(3, 9)] == beside
    assert alone.runs.states[RUN] == engine.runs.states[RUN]
    await other.stop()


async def test_a_paused_run_and_one_that_ended_can_be_swept(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await service.steering.change(RUN, {"paused": True}, by="ada")
    waits = await client.submit(forward_backward(9))
    assert (await sweep(service))["status"] == "done"
    assert await client.pending(waits)
    await service.steering.change(RUN, {"paused": False}, by="ada")
    await client.result(waits)
    await client.ask(optim_step())
    run = await service.run(RUN)
    run.end("its session has ended")
    assert (await sweep(service))["step"] == 4


async def test_a_run_that_the_engine_does_not_hold(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    run = await service.run(RUN)
    async with run.lock:
        await service.lives.unload(run)
    assert (await sweep(service))["status"] == "done"
    assert engine.runs.states == {}


async def test_what_happened_is_told(service: TinkerService, client: Client) -> None:
    await sweep(service, steps=10, max=0.01)
    begun, done = events(service, "lr_find_started", "lr_find_done")
    assert (begun.kind, begun.run_id, begun.actor, begun.step) == ("lr_find_started", RUN, "ada", 3)
    assert begun.data == {"settings": SweepSettings(steps=10, max=0.01).model_dump()}
    state = await service.lr_finder.state(RUN)
    assert (done.kind, done.data["status"]) == ("lr_find_done", "done")
    assert done.data["suggestion"] == state["suggestion"]


# How it ends otherwise


async def test_one_that_is_cancelled_frees_its_copy(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    await _at_step(engine, 20)
    state = await service.lr_finder.cancel(RUN)
    assert (state["status"], state["stage"], state["suggestion"]) == ("cancelled", None, None)
    assert 20 <= len(state["points"]) < 45
    assert copies(engine) == []
    assert events(service, "lr_find_done")[0].data["status"] == "cancelled"
    assert await service.lr_finder.cancel(RUN) == state
    assert (await sweep(service))["status"] == "done"


async def test_one_can_be_cancelled_before_it_does_anything(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    assert (await service.lr_finder.cancel(RUN))["status"] == "cancelled"
    assert copies(engine) == []
    assert (await sweep(service))["status"] == "done"


async def test_a_cancellation_waits_for_what_the_engine_is_at(
    service: TinkerService,
    client: Client,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lr_finder, "_PATIENCE", 0.05)
    await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    await _at_step(engine, 5)
    engine.trains.clear()
    for _ in range(2):  # to ask twice is not to interrupt the freeing
        state = await service.lr_finder.cancel(RUN)
        assert (state["status"], state["stage"]) == ("running", "stopping")
    engine.trains.set()
    assert (await finished(service))["status"] == "cancelled"
    assert copies(engine) == []


@pytest.mark.parametrize("kind", [ops.RestoreRun, ops.ZeroGrad, ops.ForwardBackward, ops.OptimStep])
async def test_one_that_the_engine_refuses_fails_with_its_sentence(
    service: TinkerService, client: Client, engine: FakeEngine, kind: type[Any]
) -> None:
    def refuse(op: ops.Op) -> None:
        if isinstance(op, kind) and "@" in op.run:
            raise ops.OpError("cpu ran out of memory", "server")

    engine.before = refuse
    state = await sweep(service)
    assert state["status"] == "failed"
    assert state["message"] == "The sweep could not be done: cpu ran out of memory."
    assert copies(engine) == []


async def test_an_engine_that_dies_of_something_else_costs_it_a_new_beginning(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    await _at_step(engine, 20)
    before = engine.generation
    await _until(lambda: engine.busy is None)  # between two of its operations
    engine.die()
    state = await finished(service)
    assert engine.generation > before
    assert state["status"] == "done"
    assert state["points"][0]["learning_rate"] == pytest.approx(1e-6)
    assert copies(engine) == []


async def test_one_that_kills_the_engine_is_given_up(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    def kill(op: ops.Op) -> None:
        if isinstance(op, ops.ForwardBackward) and "@" in op.run:
            engine.die()

    engine.before = kill
    state = await sweep(service)
    assert state["status"] == "failed"
    assert "the engine died at one of its batches" in state["message"]
    assert engine.generation == 2
    assert (await client.step(4))["optimizer_step"] == 4


async def test_a_server_that_stops_ends_it(
    tmp_path: Path, service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    await _at_step(engine, 5)
    await service.stop()
    assert of_copies(engine, ops.UnloadRun)[-1].run == of_copies(engine, ops.OptimStep)[-1].run
    again = make_service(tmp_path, FakeEngine())
    again.start("again")
    assert await again.lr_finder.state(RUN) == {"run_id": RUN, "status": "none"}
    await again.stop()


# What is refused


async def test_one_sweep_of_a_run_at_a_time_and_few_at_once(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    others = []
    for number in range(1, 5):
        others.append(Client(service))
        await others[-1].create(number)
        await others[-1].step()
    engine.trains.clear()
    for other in [client, *others[:3]]:
        await service.lr_finder.begin(other.run, SETTINGS, by="ada")
    with pytest.raises(SweepUnderWay, match=f"of run {RUN} is under way"):
        await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    with pytest.raises(SweepUnderWay, match="4 sweeps are under way"):
        await service.lr_finder.begin(others[3].run, SETTINGS, by="ada")
    engine.trains.set()
    for other in [client, *others[:3]]:
        assert (await finished(service, other.run))["status"] == "done"
    assert copies(engine) == []


async def test_a_run_without_batches_is_refused(service: TinkerService, engine: FakeEngine) -> None:
    client = Client(service)
    await client.create()
    with pytest.raises(ops.OpError, match="has no recent batches"):
        await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    await client.ask(ask("save_weights", path="a"))
    await client.ask(optim_step())
    with pytest.raises(ops.OpError, match="It was given none"):
        await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    with pytest.raises(UnknownRun):
        await service.lr_finder.begin("nobody", SETTINGS, by="ada")
    assert await service.lr_finder.cancel(RUN) == {"run_id": RUN, "status": "none"}


async def test_batches_whose_data_was_dropped(service: TinkerService, client: Client) -> None:
    def drop(count: int) -> None:
        def work(db: Any) -> None:
            rows = db.query(OperationRow).filter_by(kind="forward_backward").all()
            gone = [row.request_id for row in rows[:count]]
            db.execute(delete(PayloadRow).where(PayloadRow.request_id.in_(gone)))

        service._database.run(work)

    drop(2)
    assert (await sweep(service, steps=10, max=1e-3))["batches"] == 1
    drop(3)
    with pytest.raises(ops.OpError, match="history_bytes"):
        await service.lr_finder.begin(RUN, SETTINGS, by="ada")


@pytest.mark.parametrize(("start", "weight"), [(math.nan, WEIGHT), (4.0, 0.0)])
async def test_batches_that_have_no_loss(
    service: TinkerService, client: Client, engine: FakeEngine, start: float, weight: float
) -> None:
    assert isinstance(engine.runs, Landscape)
    engine.runs.start, engine.runs.weight = start, weight
    state = await sweep(service)
    assert state["status"] == "failed"
    assert "have no loss that is a finite number" in state["message"]
    assert copies(engine) == []


async def _at_step(engine: FakeEngine, count: int) -> None:
    """Wait until a copy has made so many steps."""
    await _until(lambda: len(of_copies(engine, ops.OptimStep)) >= count)


async def _until(said: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not said():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0)
