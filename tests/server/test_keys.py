"""Keys over HTTP, which only Jupyter's own people may make, list and revoke."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server.service import TinkerService

pytest_plugins = ["pytest_jupyter.jupyter_server"]


@pytest.fixture
def keys(jp_fetch: Any) -> Any:
    """Asks; gives the status and the JSON."""

    async def ask(method: str, *route: str, body: Any = None, key: str = "") -> tuple[int, Any]:
        headers = {"X-API-Key": key, "Authorization": ""} if key else {}
        data = None if body is None else json.dumps(body)
        try:
            answer = await jp_fetch(
                "tinker", "keys", *route, method=method, body=data, headers=headers
            )
        except HTTPClientError as error:
            return error.code, json.loads(getattr(error.response, "body", b"{}"))["detail"]
        return answer.code, json.loads(answer.body)

    return ask


async def test_a_key_is_made_listed_and_revoked(keys: Any, service: TinkerService) -> None:
    status, made = await keys("POST", body={"name": "a laptop"})
    assert (status, made["name"]) == (200, "a laptop")
    assert await service.keys.owner(made["key"]) == "a laptop"
    status, listed = await keys("GET")
    assert status == 200
    (key,) = listed["keys"]
    assert (key["name"], key["revoked_at"]) == ("a laptop", None)
    assert made["key"] not in json.dumps(listed)
    assert await keys("DELETE", "a laptop") == (200, {})
    assert await service.keys.owner(made["key"]) is None
    assert (await keys("GET"))[1]["keys"][0]["revoked_at"] is not None


async def test_a_key_opens_no_keys(keys: Any, service: TinkerService) -> None:
    own = service.keys.create("script")
    for method, route, body in [
        ("GET", (), None),
        ("POST", (), {"name": "another"}),
        ("DELETE", ("script",), None),
    ]:
        status, sentence = await keys(method, *route, body=body, key=own)
        assert (status, "The key 'script' opens the Tinker API" in sentence) == (403, True)
        assert (await keys(method, *route, body=body, key="tml-a-stranger"))[0] == 401
    assert [key.name for key in service.keys.list()] == ["script"]
    assert await service.keys.owner(own) == "script"


@pytest.mark.parametrize("body", [{}, {"name": 1}, {"name": ""}, {"name": "x" * 101}, [1]])
async def test_names_that_are_none(keys: Any, service: TinkerService, body: Any) -> None:
    status, sentence = await keys("POST", body=body)
    assert status == 400
    assert "name" in sentence or "object" in sentence
    assert service.keys.list() == []


async def test_a_name_that_is_taken_or_unknown(keys: Any) -> None:
    await keys("POST", body={"name": "twice"})
    status, sentence = await keys("POST", body={"name": "twice"})
    assert (status, sentence) == (
        400,
        "There is a key named 'twice' already; revoke it first.",
    )
    assert await keys("DELETE", "never") == (400, "There is no key named 'never'.")
