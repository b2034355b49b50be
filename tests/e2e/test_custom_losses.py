"""Losses of one's own through the unmodified SDK, on either side of the wire."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tinker
import torch
import torch.nn.functional as F
from tinker import types

from jupyter_tinker.wire import tinker_pb2 as pb
from tests.raw import RawRun, some_data
from tests.servers import Server

from .rollouts import ADAM, make, rollouts

pytestmark = pytest.mark.e2e


def dpo_pairs(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[Any, dict]:
    """The data are pairs: the chosen answer, then the rejected one."""
    loss = torch.zeros(())
    for i in range(0, len(data), 2):
        margin = [
            (logprobs[j] - data[j].loss_fn_inputs["logprobs"].to_torch()).sum() for j in (i, i + 1)
        ]
        loss = loss - F.logsigmoid(0.1 * (margin[0] - margin[1]))
    return loss, {"pairs": len(data) / 2}


def test_a_callable_of_the_client(service: tinker.ServiceClient) -> None:
    """DPO, which couples datums, as the cookbook does it."""
    client, data = make(service), rollouts(4)
    losses = []
    for _ in range(4):
        forward = client.forward_backward_custom(data, dpo_pairs)
        client.optim_step(ADAM)
        losses.append(forward.result().metrics["loss:sum"])
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def reverse_kl(logprobs, teacher):
    """Over K candidates of each token."""
    own = F.log_softmax(logprobs, dim=-1)
    per_token = (own.exp() * (own - F.log_softmax(teacher, dim=-1))).sum(dim=-1)
    return per_token.sum(), {"custom/kl:mean": per_token.mean()}


def policy(logprobs, logprobs_before, advantages):
    """PPO, with a penalty."""
    ratio = torch.exp(logprobs - logprobs_before)
    inside = (advantages != 0).float()
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    kl = ((logprobs_before - logprobs) * inside).sum()
    metrics = {
        "custom/kl:mean": kl,
        "custom/clipped:sum": (((ratio < 0.8) | (ratio > 1.2)).float() * inside).sum(),
    }
    return -gain.sum() + 0.05 * kl**2, metrics


def preference(logprobs, reference, side, beta):
    """DPO of a pair that shares one datum; `side` is 1, -1 or 0 at each token."""
    margin = beta * (side * (logprobs - reference)).sum()
    return -F.logsigmoid(margin), {"custom/margin:mean": margin, "custom/right:sum": margin > 0}


def candidates(seed: int) -> list[types.Datum]:
    draw = np.random.default_rng(seed)
    data = []
    for length in draw.integers(4, 20, 3).tolist():
        inputs = {
            "target_tokens": draw.integers(5, 384, (length, 3)),
            "teacher": draw.normal(size=(length, 3)).astype(np.float32),
        }
        tokens = types.ModelInput.from_ints(draw.integers(5, 384, length).tolist())
        data.append(types.Datum(model_input=tokens, loss_fn_inputs=inputs))
    return data


def renamed(data: list[types.Datum], **extra: Any) -> list[types.Datum]:
    """Rollouts with the inputs of `policy` and `preference`."""
    made = []
    for datum in data:
        old = datum.loss_fn_inputs
        inputs = {
            "target_tokens": old["target_tokens"],
            "logprobs_before": old["logprobs"],
            "reference": old["logprobs"],
            "advantages": old["advantages"],
            "side": np.sign(old["advantages"].to_numpy()).astype(np.int64),
            "beta": np.array(0.2, np.float32),
            **extra,
        }
        made.append(types.Datum(model_input=datum.model_input, loss_fn_inputs=inputs))
    return made


CUSTOM: dict[str, tuple[Any, dict[str, int], Callable[[], list[types.Datum]]]] = {
    "reverse_kl": (reverse_kl, {"logprobs": 2, "teacher": 2}, lambda: candidates(5)),
    "policy": (
        policy,
        {"logprobs": 1, "logprobs_before": 1, "advantages": 1},
        lambda: renamed(rollouts(6)),
    ),
    "preference": (
        preference,
        {"logprobs": 1, "reference": 1, "side": 1, "beta": 0},
        lambda: renamed(rollouts(7)),
    ),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_a_loss_on_the_server_is_the_loss_on_the_client(
    service: tinker.ServiceClient, name: str
) -> None:
    function, ranks, data = CUSTOM[name]
    handle = service.create_custom_loss(function, ranks).result()
    assert handle.loss_id is not None
    here = dataclasses.replace(handle, loss_id=None)  # the SDK then computes it itself
    answers, steps, later = [], [], []
    for one in (handle, here):
        client = make(service)
        forward = client.forward_backward_custom(data(), one)
        steps.append(client.optim_step(ADAM).result().metrics)
        answers.append(forward.result())
        later.append(client.forward_backward_custom(data(), one).result().metrics["loss:sum"])
    theirs, ours = answers[1].metrics, answers[0].metrics
    own = {key for key in ours if key.startswith("custom/")}
    assert own
    for key in ("loss:sum", *own):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-6)
    assert steps[0]["grad_norm"] == pytest.approx(steps[1]["grad_norm"], rel=1e-4)
    assert later[0] == pytest.approx(later[1], rel=1e-4)
    assert later[0] < ours["loss:sum"]
    for one, other in zip(answers[0].loss_fn_outputs, answers[1].loss_fn_outputs, strict=True):
        assert (one["logprobs"].to_numpy() == other["logprobs"].to_numpy()).all()


def test_metrics_of_several_chunks(service: tinker.ServiceClient) -> None:
    def lengths(logprobs):
        return logprobs.sum(), {
            "custom/tokens:mean": logprobs.detach().sum() * 0 + logprobs.shape[0],
            "custom/datums:sum": logprobs.detach().sum() * 0 + 1,
        }

    handle = service.create_custom_loss(lengths, {"logprobs": 1}).result()
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints([5] * length),
            loss_fn_inputs={"target_tokens": [6] * length},
        )
        for length in [1] * 1024 + [3] * 26
    ]
    metrics = make(service).forward_backward_custom(data, handle).result().metrics
    assert metrics["custom/datums:sum"] == 1050
    assert metrics["custom/tokens:mean"] == pytest.approx((1024 + 3 * 26) / 1050)


def test_bad_data_of_a_custom_loss(service: tinker.ServiceClient) -> None:
    def doubled(logprobs, weights):
        return (logprobs * weights * 2).sum(), {}

    handle = service.create_custom_loss(doubled, {"logprobs": 1, "weights": 1}).result()
    client = make(service)
    inputs = {"target_tokens": [6, 7], "weights": [1.0, 2.0, 3.0]}
    bad = types.Datum(model_input=types.ModelInput.from_ints([5, 6]), loss_fn_inputs=inputs)
    with pytest.raises(tinker.RequestFailedError, match="datum 0: custom loss 'doubled': node"):
        client.forward_backward_custom([bad], handle).result()
    with pytest.raises(tinker.RequestFailedError, match="was not done"):
        client.optim_step(ADAM).result()
    good = dataclasses.replace(bad, loss_fn_inputs={**inputs, "weights": [1.0, 2.0]})
    assert client.forward_backward_custom([good], handle).result().metrics["loss:sum"] < 0


def test_what_the_server_does_not_allow_is_told(service: tinker.ServiceClient) -> None:
    def noisy(logprobs):
        return (logprobs * torch.rand_like(logprobs)).sum(), {}

    with pytest.raises(tinker.RequestFailedError, match=r"'torch.rand_like' is not allowed"):
        service.create_custom_loss(noisy, {"logprobs": 1}).result()


# Without the SDK


def graph(scale: float = 2.0) -> dict[str, Any]:
    call = {"op": "call_function", "kwargs": {}}
    nodes = [
        {"op": "placeholder", "name": "lp", "target": "logprobs", "args": [], "kwargs": {}},
        {**call, "name": "sum", "target": "torch.sum", "args": [{"ref": "lp"}]},
        {**call, "name": "x", "target": "operator.mul", "args": [{"ref": "sum"}, scale]},
        {
            "op": "output",
            "name": "out",
            "target": "output",
            "args": [{"tuple": [{"ref": "x"}, {"dict": {"custom/x:sum": {"ref": "x"}}}]}],
        },
    ]
    inputs = [{"name": "logprobs", "rank": 1}]
    return {"name": "raw", "inputs": inputs, "graph": {"format": 1, "nodes": nodes}}


def create(run: RawRun, number: int = 0, **changes: Any) -> str:
    body = {"session_id": run.session_id, "custom_loss_seq_id": number, **graph(), **changes}
    status, answer = run.post("create_custom_loss", body)
    assert status == 200, answer
    return str(answer["request_id"])


def config(loss_id: str) -> dict[str, Any]:
    return {"loss_fn_config_v2": {"loss_id": pb.LossConfigValue(text=loss_id)}}


def use(run: RawRun, seq_id: int, loss_id: str) -> str:
    return run.forward_backward(seq_id, some_data(0), loss="custom", **config(loss_id))


def test_creating_a_loss_twice_is_one_loss(a_server: Server) -> None:
    run = RawRun(a_server)
    first, again, other = create(run), create(run, name="other"), create(run, number=1)
    assert first == again != other
    assert run.result(first)["type"] == "create_custom_loss"
    assert run.result(first)["loss_id"] != run.result(other)["loss_id"]


def test_a_loss_belongs_to_its_session(a_server: Server) -> None:
    run, stranger = RawRun(a_server), RawRun(a_server)
    loss_id = run.result(create(run))["loss_id"]
    failure = stranger.error(use(stranger, 1, loss_id))
    assert failure["category"] == "user"
    assert "has no custom loss" in failure["error"]
    assert "has no custom loss" in run.error(use(run, 1, "nothing"))["error"]
    nameless = run.forward_backward(2, some_data(0), loss="custom")
    assert "loss_id" in run.error(nameless)["error"]
    run.error(run.optim_step(3))
    assert run.result(use(run, 4, loss_id)).metrics["custom/x:sum"] < 0


BAD_GRAPHS: dict[str, tuple[dict[str, Any], str]] = {
    "no graph": ({"graph": None}, "graph"),
    "no nodes": ({"graph": {"format": 1, "nodes": []}}, "placeholder"),
    "another format": ({"graph": {"format": 2, "nodes": []}}, "format"),
    "no inputs": ({"inputs": []}, "inputs"),
    "a program": (
        {"graph": json.loads(json.dumps(graph()["graph"]).replace("torch.sum", "os.system"))},
        "the function 'os.system' is not allowed",
    ),
    "a file": (
        {"graph": json.loads(json.dumps(graph()["graph"]).replace("torch.sum", "torch.load"))},
        "the function 'torch.load' is not allowed",
    ),
}


@pytest.mark.parametrize("case", BAD_GRAPHS)
def test_bad_graphs_are_failed_futures(a_server: Server, case: str) -> None:
    changes, hint = BAD_GRAPHS[case]
    run = RawRun(a_server)
    failure = run.error(create(run, **changes))
    assert failure["category"] == "user"
    assert hint in failure["error"]
    assert "has no custom loss" in run.error(use(run, 1, f"{run.session_id}:loss:0"))["error"]


def test_who_may_create_a_loss(a_server: Server) -> None:
    run = RawRun(a_server)
    body = {"session_id": run.session_id, "custom_loss_seq_id": 0, **graph()}
    assert run.post("create_custom_loss", body, key="tml-wrong")[0] == 401
    assert run.post("create_custom_loss", {**body, "session_id": "nobody"})[0] == 404
    assert run.post("create_custom_loss", {**body, "custom_loss_seq_id": -1})[0] == 400
    finish = {"reason": {"type": "success"}, "detail": None}
    run.post(f"sessions/{run.session_id}/finish", finish)
    assert run.post("create_custom_loss", body)[0] == 404


def test_a_loss_outlives_engine_and_server(start: Callable[..., Server]) -> None:
    server = start()
    run = RawRun(server)
    loss_id = run.result(create(run))["loss_id"]
    before = run.loss(use(run, 1, loss_id))
    os.kill(server.engine_pid(), signal.SIGKILL)
    while server.fetch("tinker/status")[1]["engine"] == "running":
        pass  # until the server has noticed
    fresh = another_run(run, 1)
    assert fresh.loss(use(fresh, 1, loss_id)) == before
    server.stop(signal.SIGKILL)
    run.server = start(server.home)
    fresh = another_run(run, 2)
    assert fresh.loss(use(fresh, 1, loss_id)) == before


def another_run(run: RawRun, number: int) -> RawRun:
    """Of the same session, with the same first weights."""
    body = {"session_id": run.session_id, "model_seq_id": number, "base_model": "tiny"}
    lora = {"lora_config": {"rank": 4, "seed": 1}}
    made = object.__new__(RawRun)
    made.server, made.session_id = run.server, run.session_id
    made.id = f"{run.session_id}:train:{number}"
    answer = made.post("create_model", {**body, **lora})[1]
    assert made.result(answer["request_id"])["model_id"] == made.id
    return made
