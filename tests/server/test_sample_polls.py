"""One poll for many samples: each is told of once, and to the client that asked for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server import sampling_client
from tests.server.fake_engine import FORBIDDEN
from tests.server.sampling_client import Client

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")
client = sampling_client.client
jp_server_config = sampling_client.jp_server_config


async def test_one_poll_tells_of_all_samples_once(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    requests = {await client.asample(sampler) for _ in range(20)}
    bad = await client.asample(sampler, tokens=[FORBIDDEN])
    told: dict[str, Any] = {}
    cursor = 0
    while len(told) < 21:
        answer = await client.poll(sampler, cursor)
        assert answer["cursor"] > cursor
        cursor = answer["cursor"]
        for completion in answer["completions"]:
            assert completion["request_id"] not in told
            told[completion["request_id"]] = completion
    assert set(told) == {*requests, bad}
    assert told[bad] == {"state": "failed", "request_id": bad}
    for request in requests:
        body = await client.result(request)
        assert told[request]["response_payload_uncompressed_size"] == len(body)
    assert await client.poll(sampler, cursor, timeout=0.0) == {"completions": [], "cursor": cursor}


async def test_a_lost_answer_is_given_again(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    request = await client.asample(sampler)
    first = await client.poll(sampler, 0)
    assert await client.poll(sampler, 0) == first
    assert first["completions"][0]["request_id"] == request
    acknowledged = await client.poll(sampler, first["cursor"], timeout=0)
    assert acknowledged["completions"] == []


async def test_a_poll_waits_for_what_comes(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    client.engine.paused.clear()
    request = await client.asample(sampler)
    polls = [asyncio.ensure_future(client.poll(sampler)) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert not any(poll.done() for poll in polls)
    client.engine.paused.set()
    for poll in polls:
        assert (await poll)["completions"][0]["request_id"] == request


async def test_clones_hear_of_their_own_samples(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    mine = await client.asample(sampler, seq_id=0)
    theirs = await client.asample(sampler, seq_id=2 * 10**9)
    for clone, request in [(0, mine), (2, theirs)]:
        answer = await client.poll(sampler, 0, clone)
        assert [c["request_id"] for c in answer["completions"]] == [request]


async def test_what_was_fetched_is_dropped_when_the_client_says_so(client: Client) -> None:
    sampler, other = (
        await client.sampler(base_model="tiny"),
        await client.sampler(base_model="tiny"),
    )
    request = await client.asample(sampler)
    await client.result(request)
    await client.poll(other, 0, timeout=0, retrieved_request_ids=[request])
    await client.result(request)  # it was not the other's to drop
    await client.poll(sampler, 0, timeout=0, retrieved_request_ids=[request, "unknown"])
    assert (await client.refused("retrieve_future", request_id=request))[0] == 410


async def test_polls_that_make_no_sense(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    assert (await client.refused("retrieve_futures"))[0] == 400
    for target, code in [
        ({"type": "sampling_session", "sampling_session_id": "no", "cloned_sampler_id": 0}, 404),
        ({"type": "other", "sampling_session_id": sampler, "cloned_sampler_id": 0}, 400),
        ({"sampling_session_id": sampler, "cloned_sampler_id": -1}, 400),
        ({"sampling_session_id": sampler, "cloned_sampler_id": 2**70}, 400),
    ]:
        status, _ = await client.refused("retrieve_futures", target=target, prev_cursor=0)
        assert status == code, target
    for fields in [{"prev_cursor": -1}, {"timeout": "x"}, {"retrieved_request_ids": "x"}]:
        target = {"sampling_session_id": sampler, "cloned_sampler_id": 0}
        body = {"target": target, "prev_cursor": 0, **fields}
        assert (await client.refused("retrieve_futures", **body))[0] == 400


async def test_what_another_life_left_is_told_as_failed_and_gone(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    client.engine.paused.clear()
    request = await client.asample(sampler)
    # As after a restart: another life, which remembers only what is in the database.
    client.service.journal.server = "another life"
    client.service.futures._pending.clear()
    answer = await client.poll(sampler, 7)
    assert answer["completions"] == [{"state": "failed", "request_id": request}]
    assert answer["cursor"] > 7
    assert (await client.refused("retrieve_future", request_id=request))[0] == 410
    client.engine.paused.set()
