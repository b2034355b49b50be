"""The learning rate finder over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_tinker.server.service import TinkerService
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Client, add_session
from tests.server.stored import Fetch

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def find(fetch: Fetch) -> Any:
    """Asks the route of a run; returns status and JSON."""

    async def _find(method: str, run: str = RUN, *, sent: Any = None, **body: Any) -> Any:
        data = body if method == "POST" else None
        return await fetch(method, "tinker", "runs", run, "lr_find", body=data, headers=sent)

    return _find


@pytest.fixture
def client(service: TinkerService, jp_asyncio_loop: Any) -> Client:
    """Of a run that has made three steps."""
    made = Client(service)

    async def begin() -> None:
        add_session(service._database)
        service.start("here")
        await made.create()
        for n in range(3):
            await made.step(n)

    jp_asyncio_loop.run_until_complete(begin())
    return made


async def test_a_sweep_is_begun_looked_at_and_cancelled(
    client: Client, find: Any, service: TinkerService
) -> None:
    assert await find("GET") == (200, {"run_id": RUN, "status": "none"})
    engine = service.supervisor
    assert isinstance(engine, FakeEngine)
    engine.trains.clear()
    status, begun = await find("POST", steps=12, min=1e-5, max=0.1)
    assert status == 200
    assert (begun["run_id"], begun["status"], begun["actor"]) == (RUN, "running", "jupyter")
    assert begun["settings"] == {
        "min": 1e-5, "max": 0.1, "steps": 12, "batches": 8, "stop_at": 4.0,
    }  # fmt: skip
    assert (await find("GET"))[1]["status"] == "running"
    status, refused = await find("POST")
    assert status == 409
    assert "is under way" in refused["detail"]
    engine.trains.set()
    status, ended = await find("DELETE")
    assert (status, ended["status"]) == (200, "cancelled")
    assert (await find("GET"))[1] == ended


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"min": 0}, "min"),
        ({"min": -1e-3}, "min"),
        ({"max": 1e9}, "max"),
        ({"min": "1e-3"}, "min"),
        ({"min": 0.1, "max": 0.1}, "min must be below max"),
        ({"steps": 9}, "steps"),
        ({"steps": 201}, "steps"),
        ({"steps": 20.5}, "steps"),
        ({"batches": 0}, "batches"),
        ({"batches": 33}, "batches"),
        ({"stop_at": 1}, "stop_at"),
        ({"momentum": 1}, "momentum"),
    ],
)
async def test_sweeps_that_make_no_sense(
    client: Client, find: Any, body: dict[str, Any], sentence: str
) -> None:
    status, answer = await find("POST", **body)
    assert status == 400
    assert sentence in answer["detail"]
    assert (await find("GET"))[1]["status"] == "none"


async def test_who_may_not_and_runs_that_are_not_there(client: Client, find: Any) -> None:
    for method in ("GET", "POST", "DELETE"):
        status, answer = await find(method, "nobody")
        assert status == 404
        assert "no training run" in answer["detail"]
        sent = {"Authorization": "", "X-API-Key": "tml-key-of-a-stranger"}
        assert (await find(method, sent=sent))[0] == 401


async def test_a_run_without_batches(client: Client, find: Any) -> None:
    await client.create(1)
    status, answer = await find("POST", f"{client.run}")
    assert status == 400
    assert "has no recent batches" in answer["detail"]
