"""Sample previews of runs that an SDK client drives, with a real engine."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import tinker
from tinker import types

from tests.servers import Server

pytestmark = pytest.mark.e2e

PROMPTS = ["Hello", "THE SOFTWARE IS"]


def _client(service: tinker.ServiceClient, seed: int = 3) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model="tiny", rank=4, seed=seed).result()


def _step(client: tinker.TrainingClient, number: int) -> dict[str, float]:
    tokens = [(7 * number + 3 * i) % 384 for i in range(24)]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * 23},
    )
    done = client.forward_backward([datum], "cross_entropy")
    stepped = client.optim_step(types.AdamParams(learning_rate=1e-2, grad_clip_norm=1.0))
    return {**done.result().metrics, **stepped.result().metrics}


def _set(server: Server, run: str, **setting: Any) -> None:
    setting = {"prompts": PROMPTS, "max_tokens": 12, **setting}
    status, answer = server.fetch(f"tinker/runs/{run}/preview", setting, method="PUT")
    assert status == 200, answer


def _ask(server: Server, run: str) -> None:
    status, answer = server.fetch(f"tinker/runs/{run}/preview", {})
    assert status == 200, answer


def _rounds(server: Server, run: str, count: int) -> list[dict[str, Any]]:
    """Once there are so many."""
    deadline = time.monotonic() + 60
    rounds: list[dict[str, Any]] = []
    while len(rounds) < count:
        assert time.monotonic() < deadline, rounds
        rounds = server.fetch(f"tinker/runs/{run}/previews")[1]["previews"]
        time.sleep(0.05)
    return rounds


def _texts(one: dict[str, Any]) -> list[str]:
    return [answer["text"] for answer in one["answers"]]


def _saved(server: Server, client: tinker.TrainingClient) -> dict[str, bytes]:
    """Weights and optimizer as they are now."""
    client.save_state("now").result()
    folder = f"data/tinker/checkpoints/{client.model_id.replace(':', '_')}/weights/now"
    return {file.name: file.read_bytes() for file in (server.home / folder).glob("*.safetensors")}


def test_a_run_is_the_same_to_the_last_bit_with_previews_and_without(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    plain, watched = _client(service), _client(service)
    without = [_step(plain, n) for n in range(8)]
    _set(a_server, watched.model_id, every=1, temperature=1.0)
    with_previews = []
    for n in range(8):
        with_previews.append(_step(watched, n))
        if n % 3 == 0:
            _rounds(a_server, watched.model_id, n // 3 + 1)
    assert with_previews == without
    saved = _saved(a_server, plain)
    assert saved
    assert _saved(a_server, watched) == saved


def test_the_same_weights_and_seed_give_the_same_text(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    _step(client, 1)
    _set(a_server, run, temperature=1.0, seed=5)
    _ask(a_server, run)
    _rounds(a_server, run, 1)
    _ask(a_server, run)
    first, second = _rounds(a_server, run, 2)
    assert _texts(first) == _texts(second)
    assert all(text for text in _texts(first))
    _set(a_server, run, temperature=1.0, seed=6)
    _ask(a_server, run)
    assert _texts(_rounds(a_server, run, 3)[2]) != _texts(first)
    for n in range(6):
        _step(client, n)
    _set(a_server, run, temperature=1.0, seed=5)
    _ask(a_server, run)
    assert _texts(_rounds(a_server, run, 4)[3]) != _texts(first)


def test_a_preview_says_what_a_sampling_client_of_that_step_says(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    _set(a_server, run, every=4, chat=False)
    tokenizer = client.get_tokenizer()
    for n in range(4):
        _step(client, n)
    sampler = client.save_weights_and_get_sampling_client().result()
    _step(client, 9)
    (one,) = _rounds(a_server, run, 1)
    assert one["step"] == 4
    params = types.SamplingParams(max_tokens=12, temperature=0.0, seed=0)
    for prompt, answer in zip(PROMPTS, one["answers"], strict=True):
        tokens = types.ModelInput.from_ints(tokenizer.encode(prompt))
        (sequence,) = sampler.sample(tokens, 1, params).result().sequences
        assert answer["tokens"] == len(sequence.tokens)
        assert answer["text"] == tokenizer.decode(sequence.tokens, skip_special_tokens=True)


def test_the_command_asks_a_paused_run(a_server: Server, service: tinker.ServiceClient) -> None:
    client = _client(service)
    _step(client, 1)
    a_server.fetch(f"tinker/runs/{client.model_id}/controls", {"paused": True})
    address = ("--url", a_server.url, "--key", a_server.key)
    asked = a_server.command("preview", client.model_id, "Hello there", *address)
    assert asked.returncode == 0, asked.stderr
    (one,) = _rounds(a_server, client.model_id, 1)
    assert asked.stdout.startswith("step 1\n\n> Hello there\n")
    assert one["answers"][0]["text"] in asked.stdout


def test_an_engine_that_is_killed_costs_a_preview_and_no_step(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    _step(client, 1)
    _set(a_server, run, max_tokens=256, temperature=1.0)
    pid = a_server.engine_pid()
    assert pid is not None
    _ask(a_server, run)
    os.kill(pid, signal.SIGKILL)
    assert _step(client, 2)["optimizer_step"] == 2
    (first,) = _rounds(a_server, run, 1)  # which may have been done before the signal came
    assert first["error"] in (None, "The engine ended before this was sampled; the run goes on.")
    _ask(a_server, run)
    _, second = _rounds(a_server, run, 2)
    assert (second["error"], second["step"]) == (None, 2)
