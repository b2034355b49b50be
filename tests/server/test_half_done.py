"""An operation that failed in the midst: whatever it left in the engine, the run is what it was."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jupyter_tinker.wire import ops
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import (
    RUN,
    Asked,
    Client,
    add_session,
    ask,
    forward_backward,
    make_service,
    optim_step,
)

LOAD = ask("load_weights", path=f"tinker://{RUN}/weights/early", optimizer=True)


@pytest.mark.parametrize(
    ("asked", "fails"),
    [(optim_step(), ops.OptimStep), (LOAD, ops.LoadWeights)],
)
def test_what_failed_half_way_leaves_the_run_as_it_was(
    tmp_path: Path, asked: Asked, fails: type[ops.Op]
) -> None:
    async def story() -> None:
        engine = FakeEngine()
        service = make_service(tmp_path, engine)
        add_session(service._database)
        service.start("here")
        client = Client(service)
        await client.create()
        await client.step(1)
        await client.ask(ask("save_weights", path="early"))
        await client.step(2)
        await client.ask(forward_backward(3))
        before = engine.runs.states[RUN]

        def fail(op: ops.Op) -> None:
            if isinstance(op, fails):
                engine.after = lambda _: None
                raise ops.OpError("there is no memory left", "server")

        engine.after = fail
        assert "no memory left" in (await client.ask(asked))["error"]
        assert engine.runs.states[RUN] != before
        await client.ask(forward_backward(4, only=True))
        assert engine.runs.states[RUN] == before
        await service.stop()

    asyncio.run(asyncio.wait_for(story(), 15))
