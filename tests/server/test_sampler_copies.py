"""Copies of a run's weights that are sampled: made once, in order, and few of them kept."""

from __future__ import annotations

import pytest

from jupyter_tinker.wire import sampling
from tests.server import sampling_client
from tests.server.fake_engine import tokens_of
from tests.server.sampling_client import Client

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")
client = sampling_client.client
jp_server_config = sampling_client.jp_server_config


async def test_a_copy_is_made_in_the_runs_order_and_once(client: Client) -> None:
    run = await client.run()
    fields = {"model_id": run, "kind": "snapshot", "seq_id": 1}
    first = await client.call("save_weights_for_sampler", sampling_session_seq_id=3, **fields)
    again = await client.call("save_weights_for_sampler", sampling_session_seq_id=4, **fields)
    assert first["request_id"] == again["request_id"]
    saved = await client.result(first["request_id"])
    sampler = f"{client.session}:sample:3"
    assert saved == {
        "path": None,
        "sampling_session_id": sampler,
        "type": "save_weights_for_sampler",
    }
    assert client.engine.loaded[sampler] == sampling.SnapshotSampler(sampler, run)
    assert tokens_of(await client.result(await client.asample(sampler))) == [11, 12, 13]
    assert client.engine.count(sampling.LoadSampler) == 0
    found = await client.call("samplers", sampler, method="GET")
    assert found["base_model"] == "tiny"


async def test_copies_of_odd_wishes_fail_with_a_sentence(client: Client) -> None:
    run = await client.run()
    await client.sampler(base_model="tiny")
    for fields in [
        {"path": "name", "sampling_session_seq_id": 4},
        {"path": "name", "kind": "inflight"},
        {"kind": "other", "sampling_session_seq_id": 4},
        {"sampling_session_seq_id": -4},
        {"sampling_session_seq_id": 0},  # is the base model's
    ]:
        saved = await client.save(run, **fields)
        assert saved["category"] == "user", fields


async def test_inflight_samplers_of_a_run_are_one_with_the_newest_weights(client: Client) -> None:
    run = await client.run()
    first = await client.copy(run, kind="inflight")
    second = await client.copy(run, kind="inflight")
    assert first != second
    assert client.engine.count(sampling.SnapshotSampler) == 2
    for sampler in (first, second):
        await client.result(await client.asample(sampler))
    assert len(client.engine.loaded) == 1


@pytest.mark.parametrize("traits", [{"max_unnamed_samplers": 3}])
async def test_a_thousand_copies_keep_three(client: Client) -> None:
    run = await client.run()
    samplers = [await client.copy(run)]
    pending = await client.asample(samplers[0], max_tokens=10**9)
    client.engine.step_seconds = 0
    for _ in range(1000):
        samplers.append(await client.copy(run))
    await client.until(lambda: len(client.engine.loaded) <= 3)
    assert samplers[0] in client.engine.loaded  # it has something to do
    assert client.engine.most_loaded <= 6
    assert len(client.service.sampling._rows) <= 4
    dropped = await client.error(await client.asample(samplers[1]))
    assert dropped["category"] == "user"
    assert "max_unnamed_samplers" in dropped["error"]
    assert tokens_of(await client.result(await client.asample(samplers[-1]))) == [11, 12, 13]
    await client.call("cancel_future", request_id=pending)


@pytest.mark.parametrize("traits", [{"max_unnamed_samplers": 2}])
async def test_a_copy_in_use_outlives_a_newer_one(client: Client) -> None:
    run = await client.run()
    old, newer = await client.copy(run), await client.copy(run)
    await client.result(await client.asample(old))
    newest = await client.copy(run)
    await client.until(lambda: len(client.engine.loaded) == 2)
    assert set(client.engine.loaded) == {old, newest}
    assert "dropped" in (await client.error(await client.asample(newer)))["error"]
