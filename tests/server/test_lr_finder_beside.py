"""What a sweep leaves alone: the run that it copies, and the client that trains it meanwhile."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from jupyter_tinker.server.schema import OperationRow, PayloadRow, RunRow, StepRow
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from tests.server import sweeps
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import (
    RUN,
    Client,
    add_session,
    forward_backward,
    make_service,
    optim_step,
)
from tests.server.sweeps import SETTINGS, finished, sweep, three_steps

pytest_plugins = ["pytest_jupyter.jupyter_server"]
engine, service, client = sweeps.engine, sweeps.service, sweeps.client


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
    await three_steps(twin)
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
