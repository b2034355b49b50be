"""What a sampler can be made of over HTTP, and what of none."""

from __future__ import annotations

import pytest

from jupyter_tinker.server.checkpoints import CheckpointPath
from jupyter_tinker.wire import sampling
from tests.server import sampling_client
from tests.server.fake_engine import tokens_of
from tests.server.sampling_client import Client, add_checkpoint

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")
client = sampling_client.client
jp_server_config = sampling_client.jp_server_config


async def test_a_sampler_of_a_base_model(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    assert sampler == f"{client.session}:sample:0"
    found = await client.call("samplers", sampler, method="GET")
    assert found == {"sampler_id": sampler, "base_model": "tiny", "model_path": None}
    session = await client.call("sessions", client.session, method="GET")
    assert session["sampler_ids"] == [sampler]
    assert tokens_of(await client.result(await client.asample(sampler))) == [11, 12, 13]


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
async def test_a_sampler_of_a_checkpoint_whose_base_it_knows(client: Client, kind: str) -> None:
    path = await add_checkpoint(client, kind)
    sampler = await client.sampler(model_path=path, base_model="another")
    found = await client.call("samplers", sampler, method="GET")
    assert found == {"sampler_id": sampler, "base_model": "tiny", "model_path": path}
    await client.result(await client.asample(sampler))
    (loaded,) = client.engine.loaded.values()
    assert isinstance(loaded, sampling.LoadSampler)
    assert loaded.checkpoint == str(
        client.service.checkpoints.folder(
            CheckpointPath("run", kind, "x")  # type: ignore[arg-type]
        )
    )


async def test_an_overwritten_checkpoint_is_another_sampler(client: Client) -> None:
    path = await add_checkpoint(client)
    old = await client.sampler(model_path=path)
    await client.result(await client.asample(old))
    await add_checkpoint(client)
    new = await client.sampler(model_path=path)
    await client.result(await client.asample(new))
    assert client.engine.count(sampling.LoadSampler) == 2


async def test_making_a_sampler_twice_makes_one(client: Client) -> None:
    body = {
        "session_id": client.session,
        "sampling_session_seq_id": 5,
        "base_model": "tiny",
    }
    first = await client.call("create_sampling_session", **body)
    assert await client.call("create_sampling_session", **body) == first
    code, sentence = await client.refused(
        "create_sampling_session", **{**body, "base_model": "also-tiny"}
    )
    assert code == 400
    assert "another" in sentence


async def test_what_no_sampler_can_be_made_of(client: Client) -> None:
    external = await add_checkpoint(client, "external_weights")
    for fields, code in [
        ({"base_model": "unknown"}, 404),
        ({"model_path": "tinker://run/weights/unknown"}, 404),
        ({"model_path": external}, 400),
        ({"model_path": "nonsense"}, 400),
        ({"base_model": 5}, 400),
        ({}, 400),
        ({"base_model": "tiny", "sampling_session_seq_id": -1}, 400),
        ({"base_model": "tiny", "sampling_session_seq_id": "x"}, 400),
        ({"base_model": "tiny", "session_id": "unknown"}, 404),
    ]:
        body = {"session_id": client.session, "sampling_session_seq_id": 0, **fields}
        status, sentence = await client.refused("create_sampling_session", **body)
        assert status == code, fields
        assert len(sentence) > 10


async def test_joining_gives_every_client_a_number(client: Client) -> None:
    sampler = await client.sampler(base_model="tiny")
    numbers = [
        (await client.call("join_sampling_session", sampling_session_id=sampler))["client_counter"]
        for _ in range(3)
    ]
    assert numbers == [1, 2, 3]
    assert (await client.refused("join_sampling_session", sampling_session_id="no"))[0] == 404
    assert (await client.refused("join_sampling_session"))[0] == 400
