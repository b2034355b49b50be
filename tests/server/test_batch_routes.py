"""The last batches of a run over HTTP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from jupyter_tinker.server.service import TinkerService
from tests.server.one_service import RUN, Client, OneModel, add_session, optim_step
from tests.server.stored import Fetch
from tests.server.token_runs import TokenRuns, batch

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def look(fetch: Fetch) -> Any:
    """Asks for batches of a run; returns status and JSON."""

    async def _look(run: str, *route: str, headers: Any = None, **query: Any) -> tuple[int, Any]:
        path = ("tinker", "runs", run, "batches", *route)
        return await fetch("GET", *path, headers=headers, query=query)

    return _look


@pytest.fixture
def client(service: TinkerService, jp_asyncio_loop: Any, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Of a run that has made three steps."""
    made = Client(service)
    service.supervisor.runs = TokenRuns()  # type: ignore[attr-defined]
    # There are no files of this model, and none are needed.
    monkeypatch.setattr(type(service.catalog), "resolve", OneModel.resolve)

    async def begin() -> None:
        add_session(service._database)
        service.start("here")
        await made.create()
        for number in range(3):
            await made.ask(batch([1, 2, 3], [7, 8, 9 + number]))
            await made.ask(optim_step())

    jp_asyncio_loop.run_until_complete(begin())
    return made


async def test_batches_and_their_hardest_sequences(client: Client, look: Any) -> None:
    status, answer = await look(RUN)
    assert (status, answer["problem"]) == (200, None)
    assert [one["step"] for one in answer["batches"]] == [3, 2, 1]
    assert (await look(RUN, limit=1))[1]["batches"] == answer["batches"][:1]
    newest = answer["batches"][0]
    status, shown = await look(RUN, str(newest["id"]), sequences=1, length=2)
    assert status == 200
    (row,) = shown["hardest"]
    assert (row["number"], row["tokens"], row["length"]) == (1, [8, 11], 3)
    told = TokenRuns().logprobs(np.array([8, 11]))
    assert [np.float32(value) for value in row["logprobs"]] == told.tolist()
    assert len((await look(RUN, str(newest["id"]), sequences=10**6))[1]["hardest"]) == 2


@pytest.mark.parametrize(
    ("route", "query", "status", "sentence"),
    [
        (("4711",), {}, 404, "no batch 4711"),
        (("-1",), {}, 404, "A batch is a number"),
        (("9" * 40,), {}, 404, "A batch is a number"),
        ((), {"limit": "many"}, 400, "limit"),
        (("2",), {"length": "-1"}, 400, "length"),
        (("2",), {"sequences": "1e3"}, 400, "sequences"),
    ],
)
async def test_what_is_not_there(
    client: Client, look: Any, route: tuple[str, ...], query: Any, status: int, sentence: str
) -> None:
    code, answer = await look(RUN, *route, **query)
    assert code == status
    assert sentence in answer["detail"]


async def test_strangers_and_runs_that_do_not_exist(client: Client, look: Any) -> None:
    for route in ((), ("2",)):
        assert (await look("nobody", *route))[0] == 404
        stranger = {"X-API-Key": "tml-of-nobody", "Authorization": ""}
        assert (await look(RUN, *route, headers=stranger))[0] == 401
