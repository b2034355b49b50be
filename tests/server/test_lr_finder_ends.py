"""Sweeps that end before they are done: cancelled, failed, or with the engine or the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server import lr_finder
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from tests.server import sweeps
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Client, make_service
from tests.server.sweeps import SETTINGS, at_step, copies, events, finished, of_copies, sweep, until

pytest_plugins = ["pytest_jupyter.jupyter_server"]
engine, service, client = sweeps.engine, sweeps.service, sweeps.client


async def test_one_that_is_cancelled_frees_its_copy(
    service: TinkerService, client: Client, engine: FakeEngine
) -> None:
    await service.lr_finder.begin(RUN, SETTINGS, by="ada")
    await at_step(engine, 20)
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
    await at_step(engine, 5)
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
    await at_step(engine, 20)
    before = engine.generation
    await until(lambda: engine.busy is None)  # between two of its operations
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
    await at_step(engine, 5)
    await service.stop()
    assert of_copies(engine, ops.UnloadRun)[-1].run == of_copies(engine, ops.OptimStep)[-1].run
    again = make_service(tmp_path, FakeEngine())
    again.start("again")
    assert await again.lr_finder.state(RUN) == {"run_id": RUN, "status": "none"}
    await again.stop()
