"""Timelines of sessions."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server.handlers import downloads
from jupyter_tinker.server.journal import Result
from jupyter_tinker.server.schema import RequestRow, StepRow
from jupyter_tinker.server.service import TinkerService
from tests.server.stored import Ask, add_run, new_session

pytest_plugins = ["pytest_jupyter.jupyter_server"]


async def test_a_trace_tells_the_sessions_story(
    ask: Ask, service: TinkerService, jp_fetch: Any, http_server_client: Any
) -> None:
    session = await new_session(ask)
    run = add_run(service, session)
    now = time.time()
    for number, kind in enumerate(["forward_backward", "optim_step", "save_weights"]):
        row = RequestRow(
            id=f"r{number}",
            run_id=run,
            seq_id=number,
            kind=kind,
            server="s",
            accepted_at=now + number,
        )
        await service.journal.add_request(row, b"x")
    step = StepRow(
        run_id=run,
        step=1,
        time=now + 2,
        loss_sum=None,
        loss_mean=1.5,
        weight_sum=1.0,
        tokens=12,
        datums=1,
        grad_norm=2.0,
        update_norm=0.1,
        learning_rate=1e-3,
        compute_seconds=0.5,
        wait_seconds=0.0,
        memory_bytes=9,
    )
    failure = json.dumps({"error": "no room", "category": "server"}).encode()
    for request_id, result, records in [
        ("r0", Result(b"\x00\xff", "application/x-protobuf"), []),
        ("r1", Result(b"{}"), [partial(service.events.record_step, row=step)]),
        ("r2", Result(failure, failed=True), []),
    ]:
        work = service.journal.completion(request_id, run, result, records=records)
        await service._database.call(work)
    foreign = add_run(service, await new_session(ask))
    await service.journal.add_request(
        RequestRow(id="f", run_id=foreign, seq_id=0, kind="x", server="s", accepted_at=now), b""
    )

    answer = await ask("GET", "sessions", session, "trace_export")
    assert answer["status"] == "ready"
    url = urlsplit(answer["url"])
    body = (await http_server_client.fetch(f"{url.path}?{url.query}")).body
    events = json.loads(body)["traceEvents"]
    begun = {e["id"]: e for e in events if e["ph"] == "b"}
    assert {id_: e["name"] for id_, e in begun.items()} == {
        "r0": "forward_backward",
        "r1": "optim_step",
        "r2": "save_weights",
    }
    assert {e["id"] for e in events if e["ph"] == "e"} == set(begun)
    assert begun["r2"]["args"]["error"] == "no room"
    assert begun["r0"]["args"]["failed"] is False
    assert begun["r1"]["ts"] == round((now + 1) * 1e6)
    counters = {e["name"]: e["args"][e["name"]] for e in events if e["ph"] == "C"}
    assert (counters["loss_mean"], counters["tokens"]) == (1.5, 12)
    assert "optimizer step 1" in [e["name"] for e in events if e["ph"] == "i"]
    # The URL is good for this trace only, and an export that is asked for again is a new one.
    for bad in (f"{url.path}?{url.query}0", url.path, url.path.replace(session, "x")):
        with pytest.raises(HTTPClientError) as refused:
            await http_server_client.fetch(bad)
        assert refused.value.code == 403
    await ask("POST", "sessions", session, "finish", reason={"type": "success"})
    assert (await ask("GET", "sessions", session, "trace_export"))["status"] == "ready"
    body = (await http_server_client.fetch(f"{url.path}?{url.query}")).body
    assert "session finished" in [e["name"] for e in json.loads(body)["traceEvents"]]
    assert (await ask("GET", "sessions", "nobody", "trace_export"))[0] == 404


async def test_a_trace_that_takes_long_or_fails_says_so(
    ask: Ask, service: TinkerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await new_session(ask)
    written = Event()

    def slow(_: str) -> None:
        written.wait(60)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service.traces, "_write", slow)
    monkeypatch.setattr(downloads, "_TRACE_PATIENCE", 0.0)
    assert await ask("GET", "sessions", session, "trace_export") == {"status": "pending"}
    written.set()
    monkeypatch.setattr(downloads, "_TRACE_PATIENCE", 60.0)
    answer = await ask("GET", "sessions", session, "trace_export")
    assert answer["status"] == "failed"
    assert "No space left" in answer["error"]


async def test_old_traces_are_removed(ask: Ask, service: TinkerService) -> None:
    session = await new_session(ask)
    await ask("GET", "sessions", session, "trace_export")
    file = service.traces.file(session)
    service.traces.tidy()
    assert file.exists()
    os.utime(file, (0, 0))
    service.traces.tidy()
    assert not file.exists()
