"""Sampling over HTTP, in one process and on a fake engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server.checkpoints import CheckpointPath
from jupyter_tinker.server.schema import PayloadRow, SamplerRow
from jupyter_tinker.wire import sampling
from jupyter_tinker.wire import tinker_pb2 as pb
from tests.server.fake_engine import DEADLY, FORBIDDEN, FakeEngine, tokens_of

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")
API = ("tinker", "api", "v1")


@pytest.fixture
def jp_server_config(jp_server_config: dict[str, Any], tiny_model_dir: Path) -> dict[str, Any]:
    jp_server_config["TinkerExtension"].setdefault("hold_seconds", 5.0)
    jp_server_config["Catalog"]["aliases"]["also-tiny"] = str(tiny_model_dir)
    return jp_server_config


class Client:
    """Speaks the protocol as the SDK does."""

    def __init__(self, fetch: Any, service: Any) -> None:
        self._fetch = fetch
        self.service = service
        self.engine: FakeEngine = service.supervisor
        self.session = ""
        self._samplers = 0
        self._seq = 0
        self._run_seq = 0

    async def call(self, *route: str, method: str = "POST", **body: Any) -> Any:
        """The answer's JSON, or its bytes. Raises `HTTPClientError`."""
        payload = json.dumps(body) if method == "POST" else None
        answer = await self._fetch(*API, *route, method=method, body=payload, request_timeout=60)
        if "protobuf" in answer.headers["Content-Type"]:
            return answer.body
        return json.loads(answer.body) if answer.body else None

    async def refused(self, *route: str, **body: Any) -> tuple[int, str]:
        """The status and sentence that a request is refused with."""
        with pytest.raises(HTTPClientError) as refused:
            await self.call(*route, **body)
        assert refused.value.response is not None
        return refused.value.code, json.loads(refused.value.response.body)["detail"]

    async def new_session(self) -> None:
        made = await self.call("create_session", tags=[], sdk_version="test")
        self.session, self._samplers = made["session_id"], 0

    async def sampler(self, **what: Any) -> str:
        self._samplers += 1
        made = await self.call(
            "create_sampling_session",
            session_id=self.session,
            sampling_session_seq_id=self._samplers - 1,
            **what,
        )
        return str(made["sampling_session_id"])

    def body(self, sampler: str, seq_id: int | None = None, **fields: Any) -> dict[str, Any]:
        if seq_id is None:
            seq_id, self._seq = self._seq, self._seq + 1
        tokens = fields.pop("tokens", [10])
        params = {"max_tokens": fields.pop("max_tokens", 3), **fields.pop("params", {})}
        return {
            "sampling_session_id": sampler,
            "seq_id": seq_id,
            "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
            "sampling_params": params,
            "type": "sample",
            **fields,
        }

    async def asample(self, sampler: str, seq_id: int | None = None, **fields: Any) -> str:
        answer = await self.call("asample", **self.body(sampler, seq_id, **fields))
        return str(answer["request_id"])

    async def result(self, request_id: str) -> Any:
        while True:
            try:
                return await self.call("retrieve_future", request_id=request_id)
            except HTTPClientError as error:
                if error.code != 408:
                    raise

    async def error(self, request_id: str) -> dict[str, str]:
        result = await self.result(request_id)
        assert isinstance(result, dict), result
        return result

    async def poll(self, sampler: str, cursor: int = 0, clone: int = 0, **more: Any) -> Any:
        target = {
            "type": "sampling_session",
            "sampling_session_id": sampler,
            "cloned_sampler_id": clone,
        }
        more.setdefault("retrieved_request_ids", [])
        return await self.call("retrieve_futures", target=target, prev_cursor=cursor, **more)

    async def run(self, number: int = 0) -> str:
        lora = {"rank": 4, "seed": 1}
        made = await self.call(
            "create_model",
            session_id=self.session,
            model_seq_id=number,
            base_model="tiny",
            lora_config=lora,
        )
        return str((await self.result(made["request_id"]))["model_id"])

    async def step(self, run: str) -> Any:
        """A `forward_backward` and an `optim_step`."""
        self._run_seq += 2
        request = pb.ForwardBackwardRequest(
            model_id=run, seq_id=self._run_seq - 1, loss_fn="cross_entropy"
        )
        await self._fetch(
            *API,
            "forward_backward",
            method="POST",
            body=request.SerializeToString(),
            headers={"Content-Type": "application/x-protobuf"},
        )
        adam = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
        made = await self.call("optim_step", model_id=run, seq_id=self._run_seq, adam_params=adam)
        return await self.result(made["request_id"])

    async def save(self, run: str, **fields: Any) -> Any:
        self._run_seq += 1
        fields.setdefault("seq_id", self._run_seq)
        made = await self.call("save_weights_for_sampler", model_id=run, **fields)
        return await self.result(made["request_id"])

    async def copy(self, run: str, **fields: Any) -> str:
        self._samplers += 1
        fields = {"kind": "snapshot", "sampling_session_seq_id": self._samplers - 1, **fields}
        saved = await self.save(run, **fields)
        assert saved["path"] is None, saved
        return str(saved["sampling_session_id"])

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():  # noqa: ASYNC110 (what is waited for has no event)
                await asyncio.sleep(0.002)


@pytest.fixture
def client(jp_fetch: Any, jp_serverapp: Any, jp_asyncio_loop: Any) -> Client:
    made = Client(jp_fetch, jp_serverapp.web_app.settings["tinker_service"])

    async def begin() -> None:
        made.service.start("here")  # Jupyter's fixtures do not start extensions
        await made.new_session()

    jp_asyncio_loop.run_until_complete(begin())
    return made


async def add_checkpoint(client: Client, kind: str = "sampler_weights", name: str = "x") -> str:
    path = CheckpointPath("run", kind, name)  # type: ignore[arg-type]
    client.service.checkpoints.folder(path).mkdir(parents=True, exist_ok=True)
    await client.service.checkpoints.add(
        path,
        base_model="tiny",
        base_path="/models/tiny",
        lora={"rank": 4},
        step=1,
        size_bytes=1,
        user_metadata=None,
        expires_at=None,
    )
    return str(path)


# Sampling sessions


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


# One poll for many samples


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


# Copies of a run's weights


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


# The engine's death


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
