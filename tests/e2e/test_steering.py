"""Steering a run that an SDK client drives, from outside of that client."""

from __future__ import annotations

import math
import signal
import time
from typing import Any

import pytest
import tinker
from tinker import types

from jupyter_tinker.notebook.client import Client
from jupyter_tinker.notebook.follow import follow
from tests.e2e.conftest import StartServer
from tests.raw import RawRun
from tests.servers import Server

pytestmark = pytest.mark.e2e

Numbers = list[dict[str, float]]


def _client(service: tinker.ServiceClient, seed: int = 3) -> tinker.TrainingClient:
    return service.create_lora_training_client(base_model="tiny", rank=4, seed=seed).result()


def _datum(number: int, weight: float = 1.0) -> types.Datum:
    tokens = [(7 * number + 3 * i) % 384 for i in range(12)]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [weight] * 11},
    )


def _submit(client: tinker.TrainingClient, number: int, weight: float = 1.0) -> Any:
    batch = [_datum(number, weight), _datum(number + 50)]
    return (
        client.forward_backward(batch, "cross_entropy"),
        client.optim_step(types.AdamParams(learning_rate=1e-2, grad_clip_norm=1.0)),
    )


def _step(client: tinker.TrainingClient, number: int, weight: float = 1.0) -> dict[str, float]:
    forward_backward, optim_step = _submit(client, number, weight)
    loss = forward_backward.result().metrics["loss:sum"]
    return {"loss": loss, **optim_step.result().metrics}


def _steer(server: Server, run: str, **change: Any) -> dict[str, Any]:
    status, answer = server.fetch(f"tinker/runs/{run}/controls", change)
    assert status == 200, answer
    return answer


def _events(server: Server, run: str) -> list[dict[str, Any]]:
    found = []
    for event in follow(Client(server.url, server.key), [run], after=0):
        found.append(event)
        if event["kind"] == "run_ended":
            return found
    return found


def test_controls_are_in_force_from_the_very_next_step(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    asked = _step(client, 1)
    assert asked["learning_rate"] == asked["learning_rate_requested"] == 1e-2
    _steer(a_server, run, learning_rate_scale=0.5, grad_clip_norm=0.25, weight_decay=0.125)
    steered = _step(client, 2)
    assert (steered["learning_rate"], steered["learning_rate_requested"]) == (5e-3, 1e-2)
    assert (steered["grad_clip_norm"], steered["grad_clip_norm_requested"]) == (0.25, 1.0)
    assert (steered["weight_decay"], steered["weight_decay_requested"]) == (0.125, 0.0)
    _steer(a_server, run, learning_rate=0.0)
    assert _step(client, 3)["update_norm"] == pytest.approx(0, abs=1e-2)
    _steer(a_server, run, learning_rate_scale=2.0, ramp_steps=2)
    assert [_step(client, n)["learning_rate"] for n in (4, 5, 6)] == [1e-2, 2e-2, 2e-2]
    _steer(a_server, run, reset=True)
    back = _step(client, 7)
    assert (back["learning_rate"], back["grad_clip_norm"], back["weight_decay"]) == (1e-2, 1.0, 0)


def test_the_command_line_steers_from_another_process(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    address = ("--url", a_server.url, "--key", a_server.key)
    halved = a_server.command("lr", client.model_id, "x0.5", *address)
    assert halved.returncode == 0, halved.stderr
    assert _step(client, 1)["learning_rate"] == 5e-3
    paused = a_server.command("pause", client.model_id, *address)
    assert paused.returncode == 0, paused.stderr
    _, pending = _submit(client, 2)
    a_server.command("resume", client.model_id, *address)
    assert pending.result().metrics["optimizer_step"] == 2


def test_a_paused_run_waits_and_can_still_be_saved(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    _step(client, 1)
    _steer(a_server, run, paused=True)
    client.save_state("while-paused").result()
    forward_backward, optim_step = _submit(client, 2)
    time.sleep(1.0)
    assert a_server.fetch(f"tinker/runs/{run}")[1]["state"] == "paused"
    assert len(a_server.fetch(f"tinker/runs/{run}/steps")[1]["steps"]) == 1
    assert _steer(a_server, run, steps=1)["steps_until_pause"] == 1
    assert optim_step.result().metrics["optimizer_step"] == 2
    forward_backward.result()
    controls = a_server.fetch(f"tinker/runs/{run}/controls")[1]
    assert controls["paused"]
    assert controls["paused_because"] == "the step asked for is done"
    later = _submit(client, 3)
    _steer(a_server, run, paused=False)
    assert later[1].result().metrics["optimizer_step"] == 3


def test_what_is_pending_says_why_it_waits_also_after_a_restart(start: StartServer) -> None:
    config = {"TinkerExtension": {"hold_seconds": 0.2}}
    server = start(config=config)
    run = RawRun(server)
    _steer(server, run.id, paused=True, learning_rate_scale=0.5)
    request = {"request_id": run.optim_step(1)}
    status, waits = server.fetch("tinker/api/v1/retrieve_future", request)
    assert (status, waits["queue_state"]) == (408, "paused_capacity")
    assert waits["queue_state_reason"] == "the run is paused: jupyter paused it"
    server.stop(signal.SIGKILL)
    server = start(home=server.home, port=server.port, config=config)
    assert server.fetch("tinker/api/v1/retrieve_future", request)[1] == waits
    assert server.fetch(f"tinker/runs/{run.id}")[1]["state"] == "paused"
    _steer(server, run.id, paused=False)
    metrics = run.result(request["request_id"])["metrics"]
    assert metrics["learning_rate"] == metrics["learning_rate_requested"] / 2


def test_rewinding_gives_the_same_numbers_again_and_keeps_what_was_abandoned(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    first = [_step(client, n) for n in range(1, 7)]
    status, rewound = a_server.fetch(f"tinker/runs/{run}/rewind", {"step": 2})
    assert status == 200, rewound
    assert (rewound["step"], rewound["branch"]) == (2, 1)
    assert [_step(client, n) for n in range(3, 7)] == first[2:]
    other = _step(client, 17)
    a_server.fetch(f"tinker/runs/{run}/rewind", {"step": 4, "branch": 0})
    assert [_step(client, n) for n in (5, 6)] == first[4:]
    assert _step(client, 17) == other
    rows = a_server.fetch(f"tinker/runs/{run}/steps")[1]["steps"]
    told = [(row["branch"], row["step"]) for row in rows]
    assert told == [
        *((0, step) for step in range(1, 7)),
        *((1, step) for step in range(3, 8)),
        *((2, step) for step in range(5, 8)),
    ]
    status, refused = a_server.fetch(f"tinker/runs/{run}/rewind", {"step": 99})
    assert (status, refused["detail"]) == (400, f"Run {run} has no step 99.")


def test_gradients_of_before_a_rewind_are_not_used(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    first = [_step(client, n) for n in (1, 2, 3)]
    client.forward_backward([_datum(9)], "cross_entropy").result()
    a_server.fetch(f"tinker/runs/{run}/rewind", {"step": 1})
    skipped = client.optim_step(types.AdamParams(learning_rate=1e-2)).result().metrics
    assert (skipped["skipped"], skipped["optimizer_step"]) == (1.0, 1)
    assert [_step(client, n) for n in (2, 3)] == first[1:]


def test_a_fork_goes_on_as_its_original_did(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    first = [_step(client, n) for n in range(1, 7)]
    # No one needs to be asked: every step has a path.
    path = f"tinker://{run}/weights/step=3"
    fork = service.create_training_client_from_state_with_optimizer(path).result()
    assert [_step(fork, n) for n in range(4, 7)] == first[3:]
    assert a_server.fetch(f"tinker/runs/{fork.model_id}")[1]["started_from"] == path
    status, made = a_server.fetch(f"tinker/runs/{run}/fork", {"step": 5})
    assert (status, made) == (200, {"path": f"tinker://{run}/weights/step=5+branch=0"})
    again = service.create_training_client_from_state_with_optimizer(made["path"]).result()
    assert _step(again, 6) == first[5]
    with pytest.raises(tinker.NotFoundError, match="has no step 70"):
        service.create_training_client_from_state(f"tinker://{run}/weights/step=70").result()
    with pytest.raises(tinker.RequestFailedError, match="kept for the run's own steps"):
        client.save_state("step=1").result()


def test_numbers_that_are_not_finite_never_reach_the_weights(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client, twin = _client(service), _client(service)
    run = client.model_id
    _step(client, 1), _step(twin, 1)
    bad = _step(client, 2, weight=1e38)
    assert not math.isfinite(bad["loss"])
    assert (bad["skipped"], bad["optimizer_step"]) == (1.0, 1)
    assert "update_norm" not in bad
    assert _step(client, 3) == _step(twin, 3)
    row = a_server.fetch(f"tinker/runs/{run}/steps")[1]["steps"][1]
    assert "not finite" in row["skipped"]
    _steer(a_server, run, guards={"non_finite": True})
    _step(client, 4, weight=1e38)
    controls = a_server.fetch(f"tinker/runs/{run}/controls")[1]
    assert controls["paused"]
    assert "not finite" in controls["paused_because"]
    waiting = _submit(client, 5)
    _steer(a_server, run, paused=False)
    assert waiting[1].result().metrics["optimizer_step"] == 3


def test_watchers_are_told_everything_in_order(
    a_server: Server, service: tinker.ServiceClient
) -> None:
    client = _client(service)
    run = client.model_id
    _step(client, 1)
    _steer(a_server, run, learning_rate_scale=0.5)
    _step(client, 2)
    a_server.fetch(f"tinker/runs/{run}/rewind", {"step": 1})
    client.save_state("told").result()
    service.close("success")
    events = [event for event in _events(a_server, run) if event["run_id"] == run]
    assert [event["kind"] for event in events] == [
        "run_created",
        "step",
        "control_changed",
        "step",
        "rewound",
        "checkpoint_saved",
        "run_ended",
    ]
    assert [event["id"] for event in events] == sorted({event["id"] for event in events})
    assert events[2]["actor"] == "jupyter"
    assert events[2]["data"]["after"] == {"learning_rate_scale": 0.5}
