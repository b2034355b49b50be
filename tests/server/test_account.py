"""The key, the audit log, and the bills that are none."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tinker import types

from jupyter_tinker.server.service import TinkerService
from tests.server.stored import Ask, add_checkpoint, add_run, copy, new_session

pytest_plugins = ["pytest_jupyter.jupyter_server"]


async def test_a_key_can_be_asked_about_and_revoked_by_itself(
    ask: Ask, service: TinkerService
) -> None:
    key = service.keys.create("laptop")
    shown = await ask("GET", "auth", "apikey", "me", key=key)
    assert (shown["name"], shown["note"]) == ("laptop", "")
    assert shown["key_id"] > 0
    assert shown["details"]["user_details"]["email"] == "tinker-key:laptop"
    assert key not in json.dumps(shown)
    assert await ask("DELETE", "auth", "apikey", "me", key=key) == {}
    assert (await ask("GET", "auth", "apikey", "me", key=key))[0] == 401
    assert service.keys.list()[0].revoked_at is not None


async def test_jupyters_token_is_not_a_key_of_ours(ask: Ask, jp_serverapp: Any) -> None:
    key = f"tml-{jp_serverapp.identity_provider.token}"
    shown = await ask("GET", "auth", "apikey", "me", key=key)
    assert (shown["key_id"], shown["name"]) == (0, "jupyter-token")
    assert shown["details"]["user_details"]["email"] == "jupyter"
    code, sentence = await ask("DELETE", "auth", "apikey", "me", key=key)
    assert code == 403
    assert "jupyter tinker key" in sentence
    code, sentence = await ask("POST", "auth", "token")
    assert code == 400
    assert "JWT" in sentence


async def test_the_audit_log_tells_what_was_done_and_by_whom(
    ask: Ask, service: TinkerService
) -> None:
    key = service.keys.create("laptop")
    session = await new_session(ask)
    run = add_run(service, session)
    path = await add_checkpoint(service, run, "a")
    saved = ("training_runs", run, "checkpoints", "weights", "a")
    await ask("POST", *saved, "publish", key=key)
    await ask("DELETE", *saved, "publish")
    await ask("PUT", *saved, "ttl", ttl_seconds=7200)
    await ask("PUT", "sessions", session, "project", project_id="p")
    copied = await copy(ask, path, destination_project_id="p")
    external = await add_checkpoint(service, run, "e", "external_weights")
    route = ("training_runs", run, "checkpoints", "external_weights", "e")
    await ask("GET", *route, "external_weights_urls", key=key)
    await ask("DELETE", *saved, key=key)
    await add_checkpoint(service, run, "over", expires_at=time.time() - 1)
    await service.checkpoints.delete_expired()
    entries = (await ask("GET", "audit"))["entries"]
    assert types.AuditLogResponse.model_validate({"entries": entries})
    told = [(e["event"], e["event_details"]["actor"], e["tinker_path"]) for e in entries]
    laptop = "tinker-key:laptop"
    assert told == [
        ("api_key_created", "jupyter tinker", None),
        ("checkpoint_saved", "jupyter", str(path)),
        ("checkpoint_published", laptop, str(path)),
        ("checkpoint_unpublished", "jupyter", str(path)),
        ("checkpoint_ttl_set", "jupyter", str(path)),
        ("project_session_assigned", "jupyter", None),
        ("checkpoint_saved", "jupyter", copied["tinker_path"]),
        ("checkpoint_saved", "jupyter", str(external)),
        ("checkpoint_read", laptop, str(external)),
        ("checkpoint_deleted", laptop, str(path)),
        ("checkpoint_saved", "jupyter", f"tinker://{run}/weights/over"),
        ("checkpoint_expired", "server", f"tinker://{run}/weights/over"),
    ]
    projects = await ask("GET", "audit", query={"event_type": "projects"})
    assert [e["event"] for e in projects["entries"]] == ["project_session_assigned"]
    assert (await ask("GET", "audit", query={"event_type": "teams"}))["entries"] == []
    assert (await ask("GET", "audit", query={"day": "2020-01-01"}))["entries"] == []
    assert (await ask("GET", "audit", query={"day": "9999-12-31"}))["entries"] == []
    assert (await ask("GET", "audit", query={"day": "today"}))[0] == 400
    assert (await ask("GET", "audit", query={"event_type": "secrets"}))[0] == 400


async def test_nothing_is_billed(ask: Ask) -> None:
    window = {"starting_on": "2026-07-13T00:00:00Z", "ending_before": "2026-07-27T00:00:00Z"}
    answer = await ask("GET", "billing", "usage", "events", query=window)
    assert types.BillingUsageResponse.model_validate(answer).data == []
    for wrong in (
        {**window, "ending_before": "2026-07-27T01:00:00Z"},
        {**window, "ending_before": "2026-07-12T00:00:00Z"},
        {**window, "starting_on": "yesterday"},
        {},
    ):
        assert (await ask("GET", "billing", "usage", "events", query=wrong))[0] == 400


async def test_checkpoint_storage_is_what_the_disk_holds(ask: Ask, service: TinkerService) -> None:
    run = add_run(service, await new_session(ask))
    source = await add_checkpoint(service, run, "a")
    await add_checkpoint(service, run, "gone", expires_at=time.time() - 1)
    await copy(ask, source, destination_project_id="p")  # shares its files
    route = ("billing", "usage", "checkpoints", "current")
    answer = await ask("GET", *route)
    stored = types.CurrentCheckpointStorageUsageResponse.model_validate(answer).data
    seen = {item.project_id: (item.checkpoint_count, item.size_bytes) for item in stored}
    assert seen == {"default": (1, 102), "p": (1, 0)}
    only = await ask("GET", *route, query={"project_id": "p"})
    assert [item["project_id"] for item in only["data"]] == ["p"]
    assert (await ask("GET", *route, query={"project_id": "q"}))["data"] == []
    await ask("DELETE", "training_runs", run, "checkpoints", "weights", "a")
    (left,) = (await ask("GET", *route))["data"]
    assert (left["project_id"], left["size_bytes"]) == ("p", 102)


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("POST", ("sessions", "search")),
        ("PUT", ("sessions", "x", "project")),
        ("GET", ("sessions", "x", "trace_export")),
        ("POST", ("copy_weights",)),
        ("GET", ("audit",)),
        ("GET", ("billing", "usage", "events")),
        ("GET", ("billing", "usage", "checkpoints", "current")),
        ("GET", ("auth", "apikey", "me")),
        ("DELETE", ("auth", "apikey", "me")),
        ("POST", ("auth", "token")),
    ],
)
async def test_strangers_are_turned_away(ask: Ask, method: str, route: tuple[str, ...]) -> None:
    code, sentence = await ask(method, *route, key="tml-wrong")
    assert code == 401
    assert "X-API-Key" in sentence
