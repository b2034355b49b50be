"""Sessions, the runs in them, and their checkpoints: found, listed and moved."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tinker import types

from jupyter_tinker.server.service import TinkerService
from tests.server.stored import LORA, Ask, add_checkpoint, add_run, new_session

pytest_plugins = ["pytest_jupyter.jupyter_server"]


async def search(ask: Ask, **wanted: Any) -> list[str]:
    """Ids of all pages; every page has to be what the SDK can read."""
    ids: list[str] = []
    while True:
        request = types.SessionSearchRequest.model_validate(wanted)
        sent = request.model_dump(mode="json", exclude_none=True)
        answer = await ask("POST", "sessions", "search", **sent)
        page = types.SessionSearchResponse.model_validate(answer)
        assert len(page.sessions) <= request.limit
        found = [session.session_id for session in page.sessions]
        assert not set(found) & set(ids)
        ids += found
        if page.next_cursor is None:
            return ids
        wanted["cursor"] = page.next_cursor.model_dump(mode="json")


async def test_sessions_are_found_by_every_filter(ask: Ask, service: TinkerService) -> None:
    nightly = await new_session(
        ask, display_name="Nightly Évaluation", user_metadata={"lr": "1e-4", "n": 7}
    )
    archive = await new_session(ask, project_id="archive", display_name="old nightly")
    plain = await new_session(ask)
    gone = await new_session(ask)
    await ask("POST", "sessions", gone, "finish", reason={"type": "errored"}, detail="boom")
    service.session_index._heard.pop(plain)  # as if the server had been restarted

    assert await search(ask) == [gone, plain, archive, nightly]
    assert await search(ask, limit=1) == [gone, plain, archive, nightly]
    assert await search(ask, session_id=plain) == [plain]
    assert await search(ask, session_id="nobody") == []
    assert await search(ask, display_name="NIGHTLY") == [archive, nightly]
    assert await search(ask, display_name="évaluation nightly") == [nightly]
    assert await search(ask, display_name="évaluation", session_id=plain) == [plain, nightly]
    assert await search(ask, display_name="%") == []
    assert await search(ask, user_metadata={"lr": "1e-4", "n": "7"}) == [nightly]
    assert await search(ask, user_metadata={"lr": "1e-4", "n": "8"}) == []
    assert await search(ask, project_ids=["archive"]) == [archive]
    assert await search(ask, project_ids=["default"]) == [gone, plain, nightly]
    assert await search(ask, project_ids=[]) == []
    assert await search(ask, owner={"type": "accessible"}) == [gone, plain, archive, nightly]
    assert await search(ask, owner={"type": "user", "owner_urns": ["jupyter"]}) == (
        [gone, plain, archive, nightly]
    )
    assert await search(ask, owner={"type": "user", "owner_urns": ["ada"]}) == []
    assert await search(ask, statuses=[{"type": "active"}]) == [archive, nightly]
    finished = {"type": "client_finished"}
    assert await search(ask, statuses=[finished]) == [gone]
    assert await search(ask, statuses=[{**finished, "reasons": ["success"]}]) == []
    assert await search(ask, statuses=[{**finished, "reasons": ["errored"]}]) == [gone]
    assert await search(ask, statuses=[{"type": "failed"}, {"type": "cancelled"}]) == []


async def test_a_found_session_is_summed_up(ask: Ask, service: TinkerService) -> None:
    session = await new_session(ask, user_metadata={"n": 7})
    run = add_run(service, session)
    await add_checkpoint(service, run, "a")
    await add_checkpoint(service, run, "bb", "sampler_weights")
    await add_checkpoint(service, run, "over", expires_at=time.time() - 1)
    (found,) = (await ask("POST", "sessions", "search"))["sessions"]
    assert (found["checkpoints_count"], found["checkpoint_storage_bytes"]) == (2, 102 + 202)
    assert (found["owner"], found["project_id"]) == ("jupyter", "default")
    assert found["status"] == {"type": "active"}
    assert found["user_metadata"] == {"n": "7"}
    await ask("POST", "sessions", session, "finish", reason={"type": "interrupted"}, detail="^C")
    (found,) = (await ask("POST", "sessions", "search"))["sessions"]
    assert found["status"]["reason"] == {"type": "interrupted"}
    assert found["status"]["detail"] == "^C"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"display_name": ""}, "display_name"),
        ({"statuses": []}, "statuses"),
        ({"statuses": [{"type": "lost"}]}, "statuses"),
        ({"owner": {"type": "user"}}, "owner_urns"),
        ({"owner": {"type": "own", "owner_urns": ["a"]}}, "owner_urns"),
        ({"cursor": {"last_created_at": "2026-01-01T00:00:00", "last_session_id": "x"}}, "cursor"),
    ],
)
async def test_a_search_that_makes_no_sense(ask: Ask, body: dict[str, Any], field: str) -> None:
    code, sentence = await ask("POST", "sessions", "search", **body)
    assert code == 400
    assert field in sentence


async def test_a_session_moves_into_a_project_with_its_runs(
    ask: Ask, service: TinkerService
) -> None:
    session = await new_session(ask)
    run = add_run(service, session)
    assert await ask("PUT", "sessions", session, "project", project_id="p") == {}
    for project, runs in [("p", [run]), ("default", []), ("q", [])]:
        listed = await ask("GET", "training_runs", query={"project_id": project})
        assert [item["training_run_id"] for item in listed["training_runs"]] == runs
        assert listed["cursor"]["total_count"] == len(runs)
    assert (await ask("PUT", "sessions", "nobody", "project", project_id="p"))[0] == 404
    assert (await ask("PUT", "sessions", session, "project", project_id=""))[0] == 400
    assert (await ask("PUT", "sessions", session, "project"))[0] == 400


async def test_access_scopes(ask: Ask, service: TinkerService) -> None:
    session = await new_session(ask)
    run = add_run(service, session)
    for route in (("sessions",), ("sessions", session), ("training_runs",), ("training_runs", run)):
        both = [
            await ask("GET", *route, query={"access_scope": scope})
            for scope in ("owned", "accessible")
        ]
        assert both[0] == both[1]
        code, sentence = await ask("GET", *route, query={"access_scope": "stolen"})
        assert code == 400
        assert "stolen" in sentence


async def test_all_checkpoints_of_a_run_are_listed_at_once(
    ask: Ask, service: TinkerService
) -> None:
    run = add_run(service, await new_session(ask))
    for number in range(103):
        await add_checkpoint(service, run, f"{number:04d}")
    listed = await ask("GET", "training_runs", run, "checkpoints")
    assert len(listed["checkpoints"]) == 103  # the SDK asks for no second page
    page = await ask("GET", "checkpoints", query={"limit": 10, "offset": 100})
    assert [item["checkpoint_id"] for item in page["checkpoints"]] == [
        f"weights/{number:04d}" for number in (2, 1, 0)
    ]
    assert page["cursor"] == {"offset": 100, "limit": 10, "total_count": 103}
    shown = await ask("GET", "training_runs", run)
    assert shown["last_checkpoint"]["checkpoint_id"] == "weights/0102"
    assert shown["last_sampler_checkpoint"] is None


async def test_a_checkpoint_saved_anew_is_not_swept_with_its_old_time(
    ask: Ask, service: TinkerService
) -> None:
    run = add_run(service, await new_session(ask))
    path = await add_checkpoint(service, run, "x", expires_at=time.time() - 1)
    async with service.checkpoints.lock(path):  # a writer is at work
        sweeping = asyncio.create_task(service.checkpoints.delete_expired())
        await asyncio.sleep(0)
        await service._database.call(lambda db: None)  # behind the sweeper's own question
        values = {"step": 4, "size_bytes": 1, "expires_at": None}
        await service.checkpoints.add(
            path, base_model="t", base_path="/", lora=LORA, user_metadata=None, **values
        )
    await sweeping
    assert (await service.checkpoints.get(path)).step == 4
    assert service.checkpoints.folder(path).is_dir()


@pytest.mark.parametrize("version", ["0.24.1", "0.1.0"])
async def test_a_release_that_cannot_be_served_is_told_so_at_once(ask: Ask, version: str) -> None:
    code, sentence = await ask("POST", "create_session", tags=[], sdk_version=version)
    assert code == 400
    assert version in sentence
    assert "0.25 or later" in sentence
    assert (await ask("GET", "sessions"))["sessions"] == []


@pytest.mark.parametrize("version", ["0.25.0", "0.38.0", "1.0.0", "2!x", ""])
async def test_other_releases_are_served(ask: Ask, version: str) -> None:
    made = await ask("POST", "create_session", tags=[], sdk_version=version)
    assert (await ask("GET", "sessions"))["sessions"] == [made["session_id"]]


async def test_early_releases_are_not_shown_what_they_do_not_know(
    ask: Ask, service: TinkerService
) -> None:
    run = add_run(service, await new_session(ask))
    await add_checkpoint(service, run, "a")
    await add_checkpoint(service, run, "b", "external_weights")
    for version, count in [("0.27.2", 1), ("0.28.0", 2), ("0.38.0", 2), ("", 2)]:
        listed = await ask("GET", "checkpoints", headers={"X-Stainless-Package-Version": version})
        assert len(listed["checkpoints"]) == listed["cursor"]["total_count"] == count
