"""Samples over HTTP, on a fake engine: asked for, given up, and what is said of them meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_tinker.wire import sampling
from tests.server import sampling_client
from tests.server.fake_engine import FORBIDDEN, tokens_of
from tests.server.sampling_client import Client

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")
client = sampling_client.client
jp_server_config = sampling_client.jp_server_config


# Samples


async def test_a_repeated_sample_is_done_once(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    body = client.body(sampler, num_samples=3)
    first, second = await asyncio.gather(
        client.call("asample", **body), client.call("asample", **body)
    )
    assert first == second
    assert len(set(first["sample_sequence_ids"])) == 3
    await client.result(first["request_id"])
    assert client.engine.count(sampling.Sample) == 1
    other = await client.call("asample", **client.body(sampler, num_samples=3))
    assert not set(other["sample_sequence_ids"]) & set(first["sample_sequence_ids"])


@pytest.mark.parametrize(
    "fields",
    [
        {"num_samples": 0},
        {"num_samples": 10**6},
        {"num_samples": "many"},
        {"tokens": []},
        {"tokens": [-1]},
        {"tokens": ["a"]},
        {"prompt": {"chunks": [{"type": "image", "data": ""}]}},
        {"prompt": None},
        {"params": {"max_tokens": 0}},
        {"params": {"temperature": -1}},
        {"params": {"temperature": "hot"}},
        {"params": {"top_p": 2}},
        {"params": {"stop": ["x" * 10_000]}},
        {"params": {"stop": ["x"] * 10_000}},
        {"params": {"stop": {"a": 1}}},
        {"seq_id": -1},
        {"seq_id": 2**63},
        {"prompt_logprobs_last_n": 1},
        {"target_prompt_logprobs": {"data": [1], "dtype": "int64", "shape": [7, 1]}},
        {"record_stability_info": True},
    ],
)
async def test_what_cannot_be_read_is_refused_with_a_sentence(
    client: Client, fields: dict[str, Any]
) -> None:
    sampler = await client.sampler(base_model="tiny")
    body = client.body(sampler, **fields)
    code, sentence = await client.refused("asample", **body)
    assert code == 400
    assert len(sentence) > 10
    assert not client.engine.ops


async def test_unknown_samplers_and_what_only_the_engine_knows(client: Client) -> None:
    assert (await client.refused("asample", **client.body("unknown")))[0] == 404
    assert (await client.refused("samplers", "unknown", "x", method="GET"))[0] == 404
    sampler = await client.sampler(base_model="tiny")
    error = await client.error(await client.asample(sampler, tokens=[FORBIDDEN]))
    assert error["category"] == "user"
    assert "vocabulary" in error["error"]


async def test_numbers_of_joined_clients_are_large(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    request = await client.asample(sampler, seq_id=10**18 + 3)
    assert tokens_of(await client.result(request)) == [11, 12, 13]


# Giving up


async def test_a_cancelled_sample_leaves_the_engine(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    request = await client.asample(sampler, max_tokens=10**6)
    await client.until(lambda: bool(client.engine.held))
    for _ in range(2):
        await client.call("cancel_future", request_id=request)
    await client.call("cancel_future", request_id="unknown")
    assert "cancelled" in (await client.error(request))["error"]
    await client.until(lambda: not client.engine.held)
    assert (await client.refused("cancel_future"))[0] == 400


@pytest.mark.parametrize("traits", [{"abandoned_seconds": 1.0, "hold_seconds": 0.2}])
async def test_who_vanishes_leaves_no_work_and_who_stays_keeps_it(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    polled = await client.asample(sampler, max_tokens=10**6, seq_id=0)
    by_session = await client.asample(sampler, max_tokens=10**6, seq_id=10**9)
    vanished = await client.asample(sampler, max_tokens=10**6, seq_id=2 * 10**9)
    started = time.monotonic()
    # Two of them are also held for a moment at first, before the third has got to the engine.
    while (waited := time.monotonic() - started) < 2 or (
        len(client.engine.held) != 2 and waited < 20
    ):
        with pytest.raises(HTTPClientError, match="408"):
            await client.call("retrieve_future", request_id=polled)
        await client.poll(sampler, 0, clone=1)
    assert set(client.engine.held) == {polled, by_session}
    assert (await client.refused("retrieve_future", request_id=vanished))[0] == 410
    told = await client.poll(sampler, 0, clone=2)
    assert told["completions"] == [{"state": "failed", "request_id": vanished}]
    for request in (polled, by_session):
        await client.call("cancel_future", request_id=request)


async def test_the_end_of_a_session_ends_its_samples(client: Client) -> None:
    run = await client.run()
    copy, inflight = await client.copy(run), await client.copy(run, kind="inflight")
    base = await client.sampler(base_model="tiny")
    requests = [await client.asample(s, max_tokens=10**6) for s in (copy, inflight, base)]
    await client.until(lambda: len(client.engine.held) == 3)
    finish = {"reason": {"type": "success"}, "detail": None}
    await client.call("sessions", client.session, "finish", **finish)
    for request in requests:
        assert "ended" in (await client.error(request))["error"]
    await client.until(lambda: not client.engine.held and not client.engine.loaded)
    assert "ended" in (await client.error(await client.asample(base)))["error"]


# What waits says why


@pytest.mark.parametrize("traits", [{"hold_seconds": 0.05, "max_engine_samples": 1}])
async def test_what_waits_says_why(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jupyter_tinker.server.queue_state._WORTH_A_WORD", 0.0)

    async def state(request: str) -> tuple[str, str]:
        with pytest.raises(HTTPClientError) as pending:
            await client.call("retrieve_future", request_id=request)
        assert pending.value.code == 408
        assert pending.value.response is not None
        body = json.loads(pending.value.response.body)
        return body["queue_state"], body.get("queue_state_reason", "")

    sampler = await client.sampler(base_model="tiny")
    client.engine.paused.clear()
    first, second, third = [await client.asample(sampler) for _ in range(3)]
    await client.until(lambda: bool(client.engine.held))
    assert await state(first) == ("active", "")
    assert (await state(second))[0] == "paused_capacity"
    assert "1 request before it" in (await state(third))[1]
    run = await client.call(
        "create_model", session_id=client.session, model_seq_id=0, base_model="tiny"
    )
    assert "loading tiny" in (await state(run["request_id"]))[1]
    client.engine.starting = True
    assert "starting" in (await state(second))[1]
    client.engine.starting = False
    client.engine.paused.set()
    await client.result(third)


async def test_the_sdk_is_told_what_it_may_use(client: Client) -> None:
    config = await client.call("client", "config", sdk_version="0.38.0")
    assert config["sample_use_retrieve_futures"] is True
    assert config["sample_join_sampling_session"] is True
    dynamic = await client.call("client", "dynamic_config", sdk_version="0.38.0")
    assert dynamic["sample_cancel_enabled"] is True
    (model, _) = (await client.call("get_server_capabilities", method="GET"))["supported_models"]
    assert model["sampleable"] is True


async def test_training_goes_on_beside_sampling(client: Client) -> None:
    run = await client.run()
    sampler = await client.sampler(base_model="tiny")
    endless = await client.asample(sampler, max_tokens=10**6)
    copies = [await client.copy(run) for _ in range(5)]
    assert len(set(copies)) == 5
    await client.call("cancel_future", request_id=endless)
