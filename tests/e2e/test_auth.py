"""Who gets in, and where to."""

from __future__ import annotations

import urllib.request

import pytest
import tinker

from jupyter_tinker.server.handlers import HANDLERS
from tests.servers import Server

pytestmark = pytest.mark.e2e

ROUTES = sorted(
    pattern.lstrip("/").removesuffix("/?").replace("([^/]+)", "x").replace("(?:/.*)?", "/x")
    for pattern, *_ in HANDLERS
)
# A signature in their URLs stands in for a key.
SIGNED = [f"tinker/api/v1/{route}" for route in ("external/x/x/x", "archives/x/x/x", "traces/x")]


@pytest.mark.parametrize("key", ["", "tml-wrong", "tml-key-wrong", "wrong"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("route", [route for route in ROUTES if route not in SIGNED])
def test_strangers_get_401_everywhere(a_server: Server, route: str, method: str, key: str) -> None:
    body = None if method == "GET" else b"{}"
    status, answer = a_server.fetch(route, body, method=method, key=key)
    assert status == 401
    in_openais_form = route.startswith("tinker/oai/")
    assert "X-API-Key" in (answer["error"]["message"] if in_openais_form else answer["detail"])


@pytest.mark.parametrize("route", SIGNED)
def test_a_signed_url_needs_its_signature(a_server: Server, route: str) -> None:
    assert route in ROUTES
    assert a_server.fetch(route, key="")[0] == 403
    assert a_server.fetch(route)[0] == 403
    assert a_server.fetch(f"{route}?expires=99999999999&signature=00", key="")[0] == 403


def test_the_servers_token_opens_in_jupyters_ways_too(a_server: Server) -> None:
    bearer = {"Authorization": f"token {a_server.token}"}
    assert a_server.fetch("tinker/status", key="", headers=bearer)[0] == 200
    assert a_server.fetch(f"tinker/status?token={a_server.token}", key="")[0] == 200
    assert a_server.fetch("tinker/status")[0] == 200


def test_a_key_is_not_answered_with_a_cookie(a_server: Server) -> None:
    """It comes with every request; to make a cookie for each of them takes time."""
    key = urllib.request.Request(f"{a_server.url}/status", headers={"X-API-Key": a_server.key})
    with urllib.request.urlopen(key) as answer:
        assert answer.headers.get_all("Set-Cookie") is None
    with urllib.request.urlopen(f"{a_server.url}/status?token={a_server.token}") as answer:
        assert answer.headers.get_all("Set-Cookie")


def test_a_cookie_alone_may_not_post(a_server: Server) -> None:
    """The cookie that a browser holds is no use to another site's page."""
    with urllib.request.urlopen(f"{a_server.root}api?token={a_server.token}") as answer:
        cookies = [value.split(";")[0] for value in answer.headers.get_all("Set-Cookie", [])]
    headers = {"Cookie": "; ".join(cookies)}
    assert a_server.fetch("tinker/status", key="", headers=headers)[0] == 200
    status, _ = a_server.fetch("tinker/api/v1/create_session", {}, key="", headers=headers)
    assert status == 403


def test_a_key_opens_tinker_and_nothing_else_until_it_is_revoked(a_server: Server) -> None:
    made = a_server.command("key", "create", "laptop")
    key = made.stdout.strip()
    assert key.startswith("tml-key-")
    assert key not in a_server.command("key", "list").stdout
    assert key.encode() not in b"".join(
        file.read_bytes() for file in (a_server.home / "data" / "tinker").glob("tinker.db*")
    )
    assert a_server.fetch("tinker/status", key=key)[0] == 200
    for elsewhere in ("api/contents", "api/kernels", "api/sessions", "api/status", "api/me"):
        bearer = {"Authorization": f"token {key}"}
        assert a_server.fetch(elsewhere, key=key)[0] == 403
        assert a_server.fetch(elsewhere, key="", headers=bearer)[0] == 403
        assert a_server.fetch(f"{elsewhere}?token={key}", key="")[0] == 403
    again = a_server.command("key", "create", "laptop")
    assert again.returncode == 1
    assert "laptop" in again.stderr
    assert a_server.command("key", "revoke", "laptop").returncode == 0
    assert a_server.fetch("tinker/status", key=key)[0] == 401
    assert a_server.command("key", "revoke", "laptop").returncode == 1
    assert "revoked" in a_server.command("key", "list").stdout


def test_a_key_may_not_name_folders_of_the_server(a_server: Server, tiny_model_dir) -> None:
    key = a_server.command("key", "create", "guest").stdout.strip()
    route = "tinker/api/v1/create_session"
    session = a_server.fetch(route, {"tags": []})[1]["session_id"]
    body = {"session_id": session, "model_seq_id": 0, "base_model": str(tiny_model_dir)}
    status, answer = a_server.fetch("tinker/api/v1/create_model", body, key=key)
    assert status == 404
    assert "tiny" in answer["detail"]
    assert a_server.fetch("tinker/api/v1/create_model", body)[0] == 200


def test_the_sdk_shows_a_wrong_key_as_such(a_server: Server) -> None:
    with pytest.raises(tinker.AuthenticationError, match="jupyter tinker key create"):
        tinker.RestClient(base_url=a_server.url, api_key="tml-wrong").get_server_capabilities()


def test_the_authorizer_is_asked(start) -> None:
    """A server whose authorizer refuses the resource `tinker` refuses, by 403."""
    server = start(
        config={"ServerApp": {"authorizer_class": "tests.authorizers.NothingOfTinker"}},
    )
    status, answer = server.fetch("tinker/api/v1/create_session", {})
    assert status == 403
    assert "tinker" in answer["detail"]
    bearer = {"Authorization": f"token {server.token}"}
    assert server.fetch("api/status", key="", headers=bearer)[0] == 200
