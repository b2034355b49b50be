"""What cannot be swept over is refused with a sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sqlalchemy import delete

from jupyter_tinker.server.lr_finder import SweepUnderWay
from jupyter_tinker.server.registry import UnknownRun
from jupyter_tinker.server.schema import OperationRow, PayloadRow
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops
from tests.server import sweeps
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Client, ask, optim_step
from tests.server.sweeps import SETTINGS, WEIGHT, Landscape, copies, finished, sweep

pytest_plugins = ["pytest_jupyter.jupyter_server"]
engine, service, client = sweeps.engine, sweeps.service, sweeps.client


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
