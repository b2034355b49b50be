"""Sampling through the official SDK, the official OpenAI client and raw requests, on the real
engine and the tiny model."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import pytest
import tinker
from tinker import types

from tests.raw import RawRun
from tests.servers import Server

pytestmark = pytest.mark.e2e
ADAM = types.AdamParams(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-8)
LONG = types.SamplingParams(max_tokens=400, stop=[])
COPIES = 3


@pytest.fixture(scope="module")
def server(start) -> Server:
    """Keeps few copies of a run's weights, and soon gives up what nobody asks for."""
    traits = {"max_unnamed_samplers": COPIES, "abandoned_seconds": 3.0, "hold_seconds": 1.0}
    return start(config={"TinkerExtension": traits})


@pytest.fixture
def service(server: Server) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as client:
        yield client


def prompt(*tokens: int) -> types.ModelInput:
    return types.ModelInput.from_ints(list(tokens) or [10, 11, 12])


def params(**fields: Any) -> types.SamplingParams:
    return types.SamplingParams(**{"max_tokens": 5, "temperature": 0.0, "stop": [], **fields})


def tokens(response: types.SampleResponse) -> list[list[int]]:
    return [list(sequence.tokens) for sequence in response.sequences]


def train(client: tinker.TrainingClient, seed: int = 0) -> None:
    ids = np.random.default_rng(seed).integers(5, 384, 20)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1].tolist()),
        loss_fn_inputs={"target_tokens": ids[1:].tolist(), "weights": [1.0] * 19},
    )
    client.forward_backward([datum], "cross_entropy")
    client.optim_step(ADAM).result()


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < seconds
        time.sleep(0.05)


def test_two_hundred_at_once_get_their_own_answers(service: tinker.ServiceClient) -> None:
    client = service.create_sampling_client(base_model="tiny").result()
    prompts = [prompt(5 + n % 300, 7, 9) for n in range(200)]
    futures = [client.sample(p, 1, params(max_tokens=3 + n % 5)) for n, p in enumerate(prompts)]
    ids = set()
    answers = [future.result(timeout=120) for future in futures]
    for n, answer in enumerate(answers):
        (sequence,) = answer.sequences
        assert len(sequence.tokens) == len(sequence.logprobs) == 3 + n % 5
        ids.add(sequence.sequence_id)
    assert len(ids) == 200
    for n in (0, 77, 199):  # alone it is what it was in company
        alone = client.sample(prompts[n], 1, params(max_tokens=3 + n % 5)).result()
        assert tokens(alone) == tokens(answers[n])


def test_a_client_made_by_path_knows_its_model(service: tinker.ServiceClient) -> None:
    training = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
    train(training)
    path = training.save_weights_for_sampler("named").result().path
    client = service.create_sampling_client(model_path=path).result()
    assert client.get_base_model() == "tiny"
    copy = training.save_weights_and_get_sampling_client().result()
    assert tokens(client.sample(prompt(), 1, params()).result()) == tokens(
        copy.sample(prompt(), 1, params()).result()
    )
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client(model_path=path + "x").result()
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client(base_model="unknown").result()


def test_a_copy_stays_and_inflight_follows(service: tinker.ServiceClient) -> None:
    training = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()

    def logprobs(client: tinker.SamplingClient) -> list[float | None]:
        return client.compute_logprobs(prompt(20, 30, 40, 50)).result()

    frozen = training.save_weights_and_get_sampling_client().result()
    first = training.save_weights_and_get_sampling_client(kind="inflight").result()
    before = logprobs(frozen)
    assert logprobs(first) == before
    train(training)
    second = training.save_weights_and_get_sampling_client(kind="inflight").result()
    assert logprobs(frozen) == before
    assert logprobs(second) != before
    assert logprobs(first) == logprobs(second)


def test_thirty_steps_keep_few_copies(service: tinker.ServiceClient, server: Server) -> None:
    training = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
    clients = []
    for step in range(30):
        train(training, step)
        clients.append(training.save_weights_and_get_sampling_client().result())
        assert len(tokens(clients[-1].sample(prompt(), 4, params()).result())) == 4
    for client in clients[-COPIES:]:
        client.sample(prompt(), 1, params()).result()
    for client in clients[:-COPIES]:
        with pytest.raises(tinker.RequestFailedError, match="max_unnamed_samplers"):
            client.sample(prompt(), 1, params()).result()


def test_bad_samples_fail_with_a_sentence_and_others_go_on(service: tinker.ServiceClient) -> None:
    client = service.create_sampling_client(base_model="tiny").result()
    good = client.sample(prompt(), 1, params())
    for bad, what in [
        (client.sample(prompt(10**6), 1, params()), "vocabulary"),
        (client.sample(prompt(*[5] * 1000), 1, params()), "context|512"),
    ]:
        with pytest.raises(tinker.RequestFailedError, match=what) as refused:
            bad.result()
        assert refused.value.category == "user"
    for call in (
        lambda: client.sample(prompt(), 0, params()),
        lambda: client.sample(prompt(), 10**6, params()),
        lambda: client.sample(prompt(), 1, params(stop=["x" * 10_000])),
    ):
        with pytest.raises(tinker.BadRequestError):
            call().result()
    assert len(good.result().sequences) == 1


def test_a_cancelled_sample_frees_its_place(service: tinker.ServiceClient, server: Server) -> None:
    client = service.create_sampling_client(base_model="tiny").result()
    future = client.sample(prompt(), 2000, LONG)
    until(lambda: _busy(server))
    future.future().cancel()
    until(lambda: not _busy(server))


CLONE = """
import pickle, sys
client = pickle.load(sys.stdin.buffer)
from tinker import types
future = client.sample(types.ModelInput.from_ints([10, 11, 12]), {count},
    types.SamplingParams(max_tokens={length}, temperature=0.0, stop=[]))
if {wait}:
    print([list(s.tokens) for s in future.result().sequences])
else:
    import time; time.sleep(600)
"""


def _clone(
    client: tinker.SamplingClient, server: Server, *, count: int, length: int, wait: bool
) -> subprocess.Popen[bytes]:
    env = {**os.environ, "TINKER_API_KEY": server.key, "TINKER_BASE_URL": server.url}
    code = CLONE.format(count=count, length=length, wait=wait)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(client))
    process.stdin.close()
    return process


def test_clones_by_pickling_sample_beside_the_original(
    service: tinker.ServiceClient, server: Server
) -> None:
    client = service.create_sampling_client(base_model="tiny").result()
    clones = [_clone(client, server, count=2, length=5, wait=True) for _ in range(2)]
    mine = tokens(client.sample(prompt(), 2, params()).result())
    for clone in clones:
        assert clone.stdout is not None
        assert eval(clone.stdout.read()) == mine
        clone.wait(60)


def test_a_client_that_vanishes_frees_its_place(
    service: tinker.ServiceClient, server: Server
) -> None:
    client = service.create_sampling_client(base_model="tiny").result()
    clone = _clone(client, server, count=2000, length=400, wait=False)
    try:
        until(lambda: _busy(server))
    finally:
        clone.send_signal(signal.SIGKILL)
        clone.wait()
    until(lambda: not _busy(server))


def _busy(server: Server) -> bool:
    """Whether the engine computes: whether its process uses the processor."""
    pid = server.engine_pid()
    assert pid is not None

    def used() -> int:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used()
    time.sleep(0.5)
    return used() - before > 5  # of 50 ticks


def test_training_and_sampling_go_on_together(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model="tiny").result()
    training = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
    samples = [sampler.sample(prompt(n + 5), 8, params(max_tokens=100)) for n in range(16)]
    for step in range(5):
        train(training, step)
    for sample in samples:
        assert len(sample.result().sequences) == 8


def test_the_end_of_a_session_ends_its_samples(
    service: tinker.ServiceClient, server: Server
) -> None:
    client = service.create_sampling_client(base_model="tiny").result()
    future = client.sample(prompt(), 2000, LONG)
    until(lambda: _busy(server))
    route = f"tinker/api/v1/sessions/{service.holder.get_session_id()}/finish"
    assert server.fetch(route, {"reason": {"type": "success"}, "detail": None})[0] == 200
    with pytest.raises(tinker.RequestFailedError, match="ended"):
        future.result(timeout=60)


def test_samplers_outlive_the_engine_and_the_server(start) -> None:
    server = start()
    service = tinker.ServiceClient(base_url=server.url, api_key=server.key)
    training = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
    copy = training.save_weights_and_get_sampling_client().result()
    path = training.save_weights_for_sampler("named").result().path
    client = service.create_sampling_client(model_path=path).result()
    expected = tokens(client.sample(prompt(), 1, params()).result())
    copied = tokens(copy.sample(prompt(), 1, params()).result())
    pending = client.sample(prompt(), 250, params(max_tokens=200))
    until(lambda: _busy(server))
    pid = server.engine_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert len(pending.result(timeout=120).sequences) == 250
    assert tokens(copy.sample(prompt(), 1, params()).result()) == copied
    assert tokens(client.sample(prompt(), 1, params()).result()) == expected
    # The SDK samples again by itself what a server that is gone had accepted.
    pending = client.sample(prompt(), 250, params(max_tokens=200))
    until(lambda: _busy(server))
    server.stop(signal.SIGKILL)
    again = start(server.home, port=server.port)
    assert len(pending.result(timeout=120).sequences) == 250
    assert tokens(client.sample(prompt(), 1, params()).result()) == expected
    assert tokens(copy.sample(prompt(), 1, params()).result()) == copied
    again.stop()


def test_openais_client_is_answered(server: Server, service: tinker.ServiceClient) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/oai/api/v1", api_key=server.key)
    assert "tiny" in {model.id for model in client.models.list()}
    asked: Any = {"temperature": 0, "max_tokens": 20, "model": "tiny"}
    messages: Any = [{"role": "user", "content": "Permission is granted"}]
    whole = client.chat.completions.create(messages=messages, **asked)
    parts = client.chat.completions.create(messages=messages, stream=True, **asked)
    streamed = "".join(part.choices[0].delta.content or "" for part in parts)
    assert streamed == whole.choices[0].message.content
    assert 0 < whole.usage.completion_tokens <= 20
    # The same tokens as by the SDK.
    ids = client.completions.create(prompt=[10, 11, 12], logprobs=0, **asked)
    sampler = service.create_sampling_client(base_model="tiny").result()
    sdk = sampler.sample(prompt(), 1, types.SamplingParams(max_tokens=20, temperature=0.0)).result()
    mine = ids.choices[0].logprobs.token_logprobs
    assert mine == pytest.approx(sdk.sequences[0].logprobs[: len(mine)], abs=1e-5)


async def _many(server: Server) -> list[str]:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/oai/api/v1", api_key=server.key)
    asked = [
        client.completions.create(model="tiny", prompt="the", seed=n, max_tokens=30)
        for n in range(40)
    ]
    return [answer.choices[0].text for answer in await asyncio.gather(*asked)]


def test_openais_client_may_ask_often_at_once(server: Server) -> None:
    first, second = asyncio.run(_many(server)), asyncio.run(_many(server))
    assert first == second
    assert len(set(first)) > 20


def test_raw_samples_and_bad_routes(server: Server) -> None:
    run = RawRun(server)
    saved = run.result(run.submit("save_weights_for_sampler", 1, sampling_session_seq_id=0))
    sampler = saved["sampling_session_id"]
    body = {
        "sampling_session_id": sampler,
        "seq_id": 0,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5]}]},
        "sampling_params": {"max_tokens": 2},
    }
    status, answer = run.post("asample", body)
    assert status == 200
    assert len(answer["sample_sequence_ids"]) == 1
    assert run.post("asample", body)[1] == answer
    for route in ("asample", "create_sampling_session", "join_sampling_session"):
        for bad in (b"", b"[]", b"\xff", b'{"seq_id": {}}'):
            status, answer = run.post(route, bad)
            assert status == 400, (route, bad)
            assert answer["detail"]
