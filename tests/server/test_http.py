"""The HTTP edge inside one process, without an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

pytest_plugins = ["pytest_jupyter.jupyter_server"]
API = ("tinker", "api", "v1")


async def test_capabilities_are_what_is_really_there(jp_fetch: Any) -> None:
    answer = await jp_fetch(*API, "get_server_capabilities")
    (model,) = json.loads(answer.body)["supported_models"]
    assert (model["model_name"], model["max_context_length"]) == ("tiny", 512)
    assert model["trainable"] is True


async def test_an_api_key_stands_in_for_the_token(
    jp_serverapp: Any, jp_base_url: str, http_server_client: Any
) -> None:
    url = f"{jp_base_url}tinker/status"
    key = f"tml-{jp_serverapp.identity_provider.token}"
    answer = await http_server_client.fetch(url, headers={"X-API-Key": key})
    said = json.loads(answer.body)
    assert len(said.pop("server_id")) == 32
    assert said.pop("cell_seconds") is None
    assert said == {"engine": "stopped", "busy_seconds": 0.0, "progress": [], "status": None}
    with pytest.raises(HTTPClientError) as refused:
        await http_server_client.fetch(url, headers={"X-API-Key": key + "x"})
    assert refused.value.code == 401


@pytest.mark.parametrize(
    ("route", "code"),
    [
        (("tinker", "nothing"), 404),
        ((*API, "nothing"), 404),
        ((*API, "training_runs", "no"), 404),
        ((*API, "training_runs", "no", "checkpoints"), 404),
        ((*API, "sessions", "no"), 404),
        (("tinker", "runs", "no", "steps"), 404),
    ],
)
async def test_what_is_not_there(jp_fetch: Any, route: tuple[str, ...], code: int) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*route)
    assert refused.value.code == code
    assert json.loads(refused.value.response.body)["detail"]


async def test_listings_are_empty_and_whole(jp_fetch: Any) -> None:
    runs = json.loads((await jp_fetch(*API, "training_runs")).body)
    assert runs == {"training_runs": [], "cursor": {"offset": 0, "limit": 20, "total_count": 0}}
    saved = json.loads((await jp_fetch(*API, "checkpoints", params={"limit": 5})).body)
    assert saved["cursor"] == {"offset": 0, "limit": 5, "total_count": 0}
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, "checkpoints", params={"limit": "many"})
    assert refused.value.code == 400


async def test_a_session_is_made_found_and_ended(jp_fetch: Any) -> None:
    async def post(*route: str, **body: Any) -> Any:
        answer = await jp_fetch(*API, *route, method="POST", body=json.dumps(body))
        return json.loads(answer.body)

    made = await post("create_session", tags=["a"], user_metadata={"n": 1}, sdk_version="0.38.0")
    session = made["session_id"]
    assert (await post("session_heartbeat", session_id=session))["type"] == "session_heartbeat"
    found = json.loads((await jp_fetch(*API, "sessions", session)).body)
    assert found["user_metadata"] == {"n": "1"}
    await post("sessions", session, "finish", reason={"type": "success"}, detail=None)
    for route, body in [
        (("session_heartbeat",), {"session_id": session}),
        (("create_model",), {"session_id": session, "model_seq_id": 0, "base_model": "tiny"}),
    ]:
        with pytest.raises(HTTPClientError) as refused:
            await post(*route, **body)
        assert refused.value.code in (404, 410)
        assert "ended" in json.loads(refused.value.response.body)["detail"]


async def test_no_traceback_reaches_a_client(
    jp_fetch: Any, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = jp_serverapp.web_app.settings["tinker_service"]

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a secret of the server")

    monkeypatch.setattr(service.run_store, "sessions", broken)
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, "sessions")
    assert refused.value.code == 500
    assert b"secret" not in refused.value.response.body
    assert b"Traceback" not in refused.value.response.body


async def test_a_database_that_cannot_be_written_is_503(
    jp_fetch: Any, jp_serverapp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    service = jp_serverapp.web_app.settings["tinker_service"]

    async def full(*_: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(service.run_store, "add_session", full)
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, "create_session", method="POST", body='{"tags": []}')
    assert refused.value.code == 503
    assert "disk is full" in json.loads(refused.value.response.body)["detail"]
