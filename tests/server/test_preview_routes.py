"""Sample previews over HTTP: what the routes answer, and what they refuse."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server.service import TinkerService
from tests.server.one_service import RUN, Client, add_session
from tests.server.stored import Fetch

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")
DEFAULTS = {
    "prompts": [],
    "every": None,
    "max_tokens": 64,
    "temperature": 0.0,
    "seed": 0,
    "chat": None,
    "changed_at": None,
    "changed_by": None,
    "sampling": None,
}


@pytest.fixture
def asked(fetch: Fetch) -> Any:
    """Asks a route of runs; returns status and JSON."""

    async def _asked(method: str, *route: str, body: str | None = None, params: Any = None) -> Any:
        return await fetch(method, "tinker", "runs", *route, body=body, query=params)

    return _asked


@pytest.fixture
def client(service: TinkerService, jp_asyncio_loop: Any) -> Client:
    made = Client(service)

    async def begin() -> None:
        add_session(service._database)
        service.start("here")
        await made.create()

    jp_asyncio_loop.run_until_complete(begin())
    return made


async def _rounds(asked: Any, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        while True:
            status, answer = await asked("GET", RUN, "previews")
            assert status == 200
            if len(answer["previews"]) >= count:
                found: list[dict[str, Any]] = answer["previews"]
                return found
            await asyncio.sleep(0.01)


async def test_a_setting_is_put_and_kept(client: Client, asked: Any) -> None:
    assert await asked("GET", RUN, "preview") == (200, DEFAULTS)
    body = json.dumps({"prompts": ["Hello"], "every": 1, "temperature": 1})
    status, put = await asked("PUT", RUN, "preview", body=body)
    assert status == 200
    assert put["changed_at"] > 0
    wanted = {**DEFAULTS, "prompts": ["Hello"], "every": 1, "temperature": 1.0}
    assert put == {**wanted, "changed_at": put["changed_at"], "changed_by": "jupyter"}
    assert await asked("GET", RUN, "preview") == (200, put)
    status, put = await asked("PUT", RUN, "preview", body="{}")  # what is left out is as at first
    assert (put["prompts"], put["every"], put["temperature"]) == ([], None, 0.0)


async def test_answers_come_with_steps_and_on_request(client: Client, asked: Any) -> None:
    body = json.dumps({"prompts": ["Hello"], "every": 2, "max_tokens": 3})
    await asked("PUT", RUN, "preview", body=body)
    await client.step(0)
    await client.step(1)
    (first,) = await _rounds(asked, 1)
    status, told = await asked("POST", RUN, "preview", body="")
    assert (status, told["sampling"]) == (200, 2)
    _, second = await _rounds(asked, 2)
    assert (first["step"], first["actor"], first["branch"]) == (2, None, 0)
    assert (second["step"], second["actor"]) == (2, "jupyter")
    assert first["answers"] == second["answers"]
    (answer,) = first["answers"]
    assert (answer["prompt"], answer["tokens"], answer["error"]) == ("Hello", 3, None)
    query = {"after": str(first["id"]), "limit": "5"}
    _, page = await asked("GET", RUN, "previews", params=query)
    assert [one["id"] for one in page["previews"]] == [second["id"]]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("{", "JSON object"),
        ("[]", "JSON object"),
        ('{"prompts": ["a", "b", "c", "d", "e", "f"]}', "at most 5"),
        ('{"max_tokens": 1000}', "max_tokens"),
        ('{"logit_bias": {}}', "logit_bias"),
        ('{"temperature": 1e999}', "temperature"),
    ],
)
async def test_settings_that_make_no_sense(
    client: Client, asked: Any, body: str, sentence: str
) -> None:
    status, answer = await asked("PUT", RUN, "preview", body=body)
    assert status == 400
    assert sentence in answer["detail"]
    assert await asked("GET", RUN, "preview") == (200, DEFAULTS)


async def test_what_there_is_nothing_to_ask_of(client: Client, asked: Any) -> None:
    status, answer = await asked("POST", RUN, "preview", body="")
    assert status == 400
    assert "no prompts" in answer["detail"]
    for method, route, body in (
        ("GET", "preview", None),
        ("PUT", "preview", "{}"),
        ("POST", "preview", ""),
        ("GET", "previews", None),
    ):
        status, answer = await asked(method, "nobody", route, body=body)
        assert status == 404
        assert "no training run 'nobody'" in answer["detail"]


async def test_strangers_are_asked_for_a_key(client: Client, jp_fetch: Any) -> None:
    for method, body in (("GET", None), ("PUT", "{}"), ("POST", "")):
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch(
                *("tinker", "runs", RUN, "preview"),
                method=method,
                body=body,
                headers={"Authorization": "", "X-API-Key": "tml-wrong"},
            )
        assert refused.value.code == 401
