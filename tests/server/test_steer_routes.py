"""Steering over HTTP: what the routes answer, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import delete, update
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server.schema import PayloadRow, RunRow
from jupyter_tinker.server.service import TinkerService
from tests.server.one_service import RUN, SESSION, Client, add_session
from tests.server.stored import Fetch

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")


@pytest.fixture
def steer(fetch: Fetch) -> Any:
    """Asks a route of runs; returns status and JSON."""

    async def _steer(*route: str, **body: Any) -> tuple[int, Any]:
        return await fetch("POST" if body else "GET", "tinker", "runs", *route, body=body or None)

    return _steer


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


async def test_a_run_says_what_it_does_and_how_it_is_steered(client: Client, steer: Any) -> None:
    status, run = await steer(RUN)
    assert status == 200
    assert (run["state"], run["ended"], run["started_from"]) == ("waiting", None, None)
    assert (run["step"], run["branch"], run["branches"]) == (3, 0, [])
    assert run["last_step"]["step"] == 3
    status, controls = await steer(RUN, "controls")
    assert controls == run["controls"]
    status, controls = await steer(RUN, "controls", learning_rate=0.5, paused=True)
    assert status == 200
    assert (controls["learning_rate"], controls["paused"]) == (0.5, True)
    assert (controls["paused_because"], controls["changed_by"]) == ("jupyter paused it", "jupyter")
    (listed,) = (await steer())[1]["runs"]
    assert (listed["state"], listed["controls"]) == ("paused", controls)


async def test_a_live_run_is_found_behind_any_number_that_have_ended(
    client: Client, jp_fetch: Any, service: TinkerService
) -> None:
    def add(db: Any) -> None:
        row = db.get(RunRow, RUN)
        values = {column.name: getattr(row, column.name) for column in RunRow.__table__.columns}
        for n in range(1, 60):
            values |= {"id": f"{SESSION}:train:{n}", "created_at": row.created_at + n}
            db.add(RunRow(**values))
        db.execute(update(RunRow).where(RunRow.id != RUN).values(ended="over"))
        copy = {**values, "id": "copy", "copied_from": "tinker://x", "ended": None}
        db.add(RunRow(**copy))

    service._database.run(add)

    async def listed(**params: Any) -> tuple[list[str], int]:
        answer = json.loads((await jp_fetch("tinker", "runs", params=params)).body)
        return [run["run_id"] for run in answer["runs"]], answer["total"]

    newest, total = await listed(limit=50)
    assert RUN not in newest
    assert (len(newest), total) == (50, 61)
    assert await listed(limit=50, live=1) == ([RUN], 1)
    assert (await listed(limit=2, live=0))[1] == 61
    await client.create(100)
    other = f"{SESSION}:train:100"
    assert (await listed(live=1))[0] == [other, RUN]
    client.run, client.seq_id = RUN, 6
    await client.step(7)
    assert (await listed(live=1))[0] == [RUN, other], "the one that trains comes first"


async def test_a_run_tells_the_tags_of_its_session(
    client: Client, service: TinkerService, steer: Any
) -> None:
    assert (await steer(RUN))[1]["session_tags"] == []
    row = await service.sessions.get(SESSION)
    row.tags = ["mine", "jupyter-kernel=k"]
    service._database.run(lambda db: db.merge(row))
    assert (await steer(RUN))[1]["session_tags"] == ["mine", "jupyter-kernel=k"]
    (listed,) = (await steer())[1]["runs"]
    assert listed["session_tags"] == ["mine", "jupyter-kernel=k"]


@pytest.mark.parametrize("tags", [["x"] * 65, ["x" * 257], "x"])
async def test_tags_are_bounded(tags: object, jp_fetch: Any) -> None:
    body = json.dumps({"tags": tags, "sdk_version": "0.38.0"})
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch("tinker", "api", "v1", "create_session", method="POST", body=body)
    assert refused.value.code == 400
    assert "tags" in json.loads(refused.value.response.body)["detail"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"learning_rate_scale": 0}, "learning_rate_scale"),
        ({"momentum": 1}, "momentum"),
        ({"paused": "yes"}, "paused"),
        ({"steps": 0}, "steps"),
    ],
)
async def test_changes_that_make_no_sense(
    client: Client, steer: Any, body: dict[str, Any], sentence: str
) -> None:
    before = (await steer(RUN, "controls"))[1]
    status, answer = await steer(RUN, "controls", **body)
    assert status == 400
    assert sentence in answer["detail"]
    assert (await steer(RUN, "controls"))[1] == before


async def test_a_rewind_answers_with_the_run(client: Client, steer: Any) -> None:
    status, run = await steer(RUN, "rewind", step=1)
    assert status == 200
    assert (run["step"], run["branch"]) == (1, 1)
    (branch,) = run["branches"]
    assert (branch["number"], branch["step"], branch["actor"]) == (1, 1, "jupyter")
    status, run = await steer(RUN, "rewind", step=3, branch=0)
    assert (run["step"], run["branch"]) == (3, 2)
    (listed,) = (await steer())[1]["runs"]
    assert (listed["branch"], listed["branches"]) == (2, run["branches"])
    assert [branch["parent"] for branch in listed["branches"]] == [0, 0]


async def test_a_fork_answers_with_a_path(client: Client, steer: Any) -> None:
    status, answer = await steer(RUN, "fork", step=2)
    assert (status, answer) == (200, {"path": f"tinker://{RUN}/weights/step=2+branch=0"})


@pytest.mark.parametrize("deed", ["rewind", "fork"])
async def test_steps_that_are_not_there(client: Client, steer: Any, deed: str) -> None:
    for body, status, sentence in (
        ({"step": 9}, (400, 404), "no step 9"),
        ({"step": 1, "branch": 4}, (400, 404), "no branch 4"),
        ({"step": -1}, (400,), "step"),
        ({"branch": 0}, (400,), "step"),
    ):
        code, answer = await steer(RUN, deed, **body)
        assert code in status
        assert sentence in answer["detail"]
    assert (await steer("nobody", deed, step=1))[0] == 404


@pytest.mark.parametrize("deed", ["rewind", "fork"])
async def test_a_past_that_is_gone_says_what_is_kept(
    client: Client, steer: Any, service: TinkerService, deed: str
) -> None:
    await service.snapshots.delete(await service.history.snapshots(RUN))
    service._database.run(lambda db: db.execute(delete(PayloadRow)))
    code, answer = await steer(RUN, deed, step=1)
    assert code in (400, 404)
    assert "history_bytes" in answer["detail"]
    assert (await steer(RUN))[1]["branch"] == 0
