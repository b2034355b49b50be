"""Samples and copies of weights outlive the engine, or fail with a sentence."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, update

from jupyter_tinker.server.schema import PayloadRow, SamplerRow
from tests.server import sampling_client
from tests.server.fake_engine import DEADLY, tokens_of
from tests.server.sampling_client import Client, add_checkpoint

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")
client = sampling_client.client
jp_server_config = sampling_client.jp_server_config


async def test_the_engines_death_loses_nothing(client: Client) -> None:
    run = await client.run()
    copy, base = await client.copy(run), await client.sampler(base_model="tiny")
    named = await client.sampler(model_path=await add_checkpoint(client))
    weights = client.engine.copies[copy]
    assert weights
    client.engine.step_seconds = 0.02
    requests = [await client.asample(s, max_tokens=200) for s in (copy, base, named)]
    await client.until(lambda: len(client.engine.held) == 3)
    client.engine.die()
    client.engine.step_seconds = 0
    for request in requests:
        assert tokens_of(await client.result(request)) == list(range(11, 211))
    assert client.engine.copies == {copy: weights}
    await client.until(lambda: list(client.engine.runs.states) == [run])
    again = await client.copy(run)
    assert client.engine.copies[again] == weights


async def test_a_copy_is_made_again_of_what_its_run_was(client: Client) -> None:
    run = await client.run()
    old = await client.copy(run)
    await client.step(run)
    new = await client.copy(run)
    weights = dict(client.engine.copies)
    assert weights[old] != weights[new]
    await client.step(run)
    client.engine.die()
    for sampler in (new, old):
        await client.result(await client.asample(sampler))
    assert client.engine.copies == weights
    # Of the run itself the engine has what it is now, and no other state is left in it.
    await client.until(lambda: list(client.engine.runs.states) == [run])
    assert client.engine.runs.states[run].step == 2


async def test_a_copy_whose_making_is_not_known_fails_with_a_sentence(client: Client) -> None:
    run = await client.run()
    copy = await client.copy(run)
    change = update(SamplerRow).values(position=None)  # as of an earlier version
    client.service._database.run(lambda db: db.execute(change))
    client.engine.die()
    error = await client.error(await client.asample(copy))
    assert error["category"] == "server"
    assert "Make a new sampling client" in error["error"]


async def test_a_copy_whose_history_was_dropped_fails_with_a_sentence(client: Client) -> None:
    run = await client.run()
    await client.step(run)
    copy = await client.copy(run)
    await client.service.snapshots.delete(await client.service.history.snapshots(run))
    client.service._database.run(lambda db: db.execute(delete(PayloadRow)))
    client.engine.die()
    error = await client.error(await client.asample(copy))
    assert error["category"] == "server"
    assert "history_bytes" in error["error"]


async def test_what_kills_the_engine_fails_at_last(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    error = await client.error(await client.asample(sampler, tokens=[DEADLY]))
    assert error["category"] == "server"
    assert client.engine.generation == 2
    assert tokens_of(await client.result(await client.asample(sampler))) == [11, 12, 13]
