"""A server inside the test's process, without an engine, and somebody who asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server import extension
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.service import TinkerService
from tests.server.fake_engine import FakeEngine
from tests.server.stored import Ask, Fetch

API = ("tinker", "api", "v1")


@pytest.fixture
def traits() -> dict[str, Any]:
    """What a test sets of the extension."""
    return {}


@pytest.fixture
def jp_server_config(
    tmp_path: Path, tiny_model_dir: Path, traits: dict[str, Any]
) -> dict[str, Any]:
    """No models but the tiny one."""
    nowhere = str(tmp_path / "none")
    return {
        "ServerApp": {"jpserver_extensions": {"jupyter_tinker": True}},
        "TinkerExtension": {"state_dir": str(tmp_path / "state"), **traits},
        "Catalog": {
            "aliases": {"tiny": str(tiny_model_dir)},
            "models_dir": nowhere,
            "hub_cache": nowhere,
        },
    }


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """An empty one."""
    return Database(default_url(tmp_path))


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """Where models are to be kept."""
    return tmp_path / "models"


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that is started afterwards."""
    monkeypatch.setattr(extension, "EngineSupervisor", FakeEngine)


@pytest.fixture
def service(jp_serverapp: Any) -> TinkerService:
    service: TinkerService = jp_serverapp.web_app.settings["tinker_service"]
    return service


@pytest.fixture
def ask(jp_fetch: Any) -> Ask:
    """Asks the API; returns its JSON, or (status, sentence) of what it refused."""

    async def _ask(
        method: str, *route: str, key: str = "", headers: Any = None, query: Any = None, **body: Any
    ) -> Any:
        sent = {"X-API-Key": key, "Authorization": ""} if key else {}
        sent.update(headers or {})
        data = json.dumps(body) if method in ("POST", "PUT") else None
        try:
            answer = await jp_fetch(
                *API, *route, method=method, body=data, headers=sent, params=query or {}
            )
        except HTTPClientError as error:
            answer = error.response
            return error.code, json.loads(getattr(answer, "body", b"{}"))["detail"]
        return json.loads(answer.body)

    return _ask


@pytest.fixture
def fetch(jp_fetch: Any) -> Fetch:
    """Asks any route of the server; returns status and JSON."""

    async def _fetch(
        method: str, *route: str, body: Any = None, headers: Any = None, query: Any = None
    ) -> tuple[int, Any]:
        raw = body if isinstance(body, str) or body is None else json.dumps(body)
        more = {"headers": headers or {}, "params": query or {}}
        try:
            answer = await jp_fetch(*route, method=method, body=raw, **more)
        except HTTPClientError as error:
            return error.code, json.loads(getattr(error.response, "body", b"") or b"{}")
        return answer.code, json.loads(answer.body or b"null")

    return _fetch
