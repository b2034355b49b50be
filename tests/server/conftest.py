"""A server inside the test's process, without an engine, and somebody who asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server.service import TinkerService
from tests.server.stored import Ask

API = ("tinker", "api", "v1")


@pytest.fixture
def jp_server_config(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Any]:
    return {
        "ServerApp": {"jpserver_extensions": {"jupyter_tinker": True}},
        "TinkerExtension": {"state_dir": str(tmp_path / "state")},
        "Catalog": {"aliases": {"tiny": str(tiny_model_dir)}},
    }


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
