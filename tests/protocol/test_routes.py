"""Every route of the protocol, asked without the SDK and read by the SDK's own types.

The SDK refuses an answer that lacks a field or has one of another type, so its types are the test.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter
from tinker import types
from tinker.proto.response_conv import (
    deserialize_forward_backward_output,
    deserialize_sample_response,
)

from tests.protocol.conftest import Everything
from tests.raw import RawRun, some_data

pytestmark = pytest.mark.e2e

Fields = dict[str, Any]
SDK: Fields = {"sdk_version": "0.38.0"}

# Method and route, the body, and the SDK's type of the answer; None: any answer will do.
ROUTES: dict[str, tuple[str, Callable[[Everything], Fields | None], Any]] = {
    "healthz": ("GET healthz", lambda e: None, types.HealthResponse),
    "client config": ("POST client/config", lambda e: SDK, types.ClientConfigResponse),
    "dynamic config": (
        "POST client/dynamic_config",
        lambda e: SDK,
        types.ClientDynamicConfigResponse,
    ),
    "capabilities": (
        "GET get_server_capabilities",
        lambda e: None,
        types.GetServerCapabilitiesResponse,
    ),
    "create_session": (
        "POST create_session",
        lambda e: {"tags": ["a"], "user_metadata": {}, **SDK, "type": "create_session"},
        types.CreateSessionResponse,
    ),
    "heartbeat": (
        "POST session_heartbeat",
        lambda e: {"session_id": e.run.session_id},
        types.SessionHeartbeatResponse,
    ),
    "telemetry": (
        "POST telemetry",
        lambda e: {"events": [], "platform": "x", "session_id": e.run.session_id},
        types.TelemetryResponse,
    ),
    "sessions": ("GET sessions?limit=5", lambda e: None, types.ListSessionsResponse),
    "session": ("GET sessions/{session}", lambda e: None, types.GetSessionResponse),
    "search": (
        "POST sessions/search",
        lambda e: {"user_metadata": {}, "owner": {"type": "accessible"}, "limit": 5},
        types.SessionSearchResponse,
    ),
    "finish": (
        "POST sessions/{spare}/finish",
        lambda e: {"reason": {"type": "success"}, "detail": None},
        None,
    ),
    "project": ("PUT sessions/{session}/project", lambda e: {"project_id": "mine"}, None),
    "trace": ("GET sessions/{session}/trace_export", lambda e: None, None),
    "get_info": ("POST get_info", lambda e: {"model_id": e.run.id}, types.GetInfoResponse),
    "create_sampling_session": (
        "POST create_sampling_session",
        lambda e: {
            "session_id": e.run.session_id,
            "sampling_session_seq_id": 7,
            "model_path": e.paths["sampler_weights"],
        },
        types.CreateSamplingSessionResponse,
    ),
    "sampler": ("GET samplers/{sampler}", lambda e: None, types.GetSamplerResponse),
    "join": (
        "POST join_sampling_session",
        lambda e: {"sampling_session_id": e.sampler},
        types.JoinSamplingSessionResponse,
    ),
    "retrieve_futures": (
        "POST retrieve_futures",
        lambda e: {
            "target": {"type": "sampling_session", "sampling_session_id": e.sampler},
            "timeout": 0.0,
        },
        types.FuturesRetrieveResponse,
    ),
    "cancel_future": ("POST cancel_future", lambda e: {"request_id": "unknown"}, None),
    "training_runs": ("GET training_runs?limit=5", lambda e: None, types.TrainingRunsResponse),
    "training_run": ("GET training_runs/{run}", lambda e: None, types.TrainingRun),
    "checkpoints of a run": (
        "GET training_runs/{run}/checkpoints",
        lambda e: None,
        types.CheckpointsListResponse,
    ),
    "checkpoints": ("GET checkpoints?limit=5", lambda e: None, types.CheckpointsListResponse),
    "publish": ("POST training_runs/{run}/checkpoints/weights/here/publish", lambda e: None, None),
    "unpublish": (
        "DELETE training_runs/{run}/checkpoints/weights/here/publish",
        lambda e: None,
        None,
    ),
    "ttl": (
        "PUT training_runs/{run}/checkpoints/weights/here/ttl",
        lambda e: {"ttl_seconds": None},
        None,
    ),
    "external urls": (
        "GET training_runs/{run}/checkpoints/external_weights/here/external_weights_urls",
        lambda e: None,
        types.ExternalWeightsUrlsResponse,
    ),
    "archive": ("GET training_runs/{run}/checkpoints/weights/here/archive", lambda e: None, None),
    "delete": ("DELETE training_runs/{run}/checkpoints/weights/spare", lambda e: None, None),
    "weights_info": (
        "POST weights_info",
        lambda e: {"tinker_path": e.paths["weights"]},
        types.WeightsInfoResponse,
    ),
    "copy_weights": (
        "POST copy_weights",
        lambda e: {
            "source_path": e.paths["weights"],
            "session_id": e.run.session_id,
            "model_seq_id": 90,
        },
        types.CopyWeightsResponse,
    ),
    "audit": ("GET audit", lambda e: None, types.AuditLogResponse),
    "usage": (
        "GET billing/usage/events?starting_on=2026-01-01&ending_before=2026-01-08",
        lambda e: None,
        types.BillingUsageResponse,
    ),
    "storage": (
        "GET billing/usage/checkpoints/current",
        lambda e: None,
        types.CurrentCheckpointStorageUsageResponse,
    ),
    "own key": ("GET auth/apikey/me", lambda e: None, None),
}

# Requests whose answer is a future, and the SDK's type of what it brings.
FUTURES: dict[str, Any] = {
    "create_model": types.CreateModelResponse,
    "forward_backward": types.ForwardBackwardOutput,
    "optim_step": types.OptimStepResponse,
    "save_weights": types.SaveWeightsResponse,
    "load_weights": types.LoadWeightsResponse,
    "save_weights_for_sampler": types.SaveWeightsForSamplerResponse,
    "save_weights_external": types.SaveWeightsExternalResponse,
    "asample": types.SampleResponse,
}

# Routes that other tests ask, and where.
ELSEWHERE: dict[str, str] = {
    "POST create_custom_loss": "tests/e2e/test_custom_losses.py",
    "POST retrieve_future": "tests/raw.py",
    "GET external/*/*/*": "tests/e2e/test_auth.py",
    "GET archives/*/*/*": "tests/e2e/test_auth.py",
    "GET traces/*": "tests/e2e/test_auth.py",
    "POST auth/token": "tests/server/test_account.py",
    "DELETE auth/apikey/me": "tests/server/test_account.py",
}


@pytest.mark.parametrize("name", ROUTES)
def test_an_answer_is_what_the_sdk_reads(everything: Everything, name: str) -> None:
    line, fields, kind = ROUTES[name]
    method, route = line.split(" ", 1)
    route = route.format(
        session=everything.run.session_id,
        run=everything.run.id,
        sampler=everything.sampler,
        spare=everything.spare_session,
    )
    body = fields(everything)
    if body is None and method == "POST":
        body = {}
    status, answer = everything.run.post(route, body, method=method)
    assert 200 <= status < 300, answer
    if kind is not None:
        TypeAdapter(kind).validate_python(answer)


def future(everything: Everything, route: str, body: Fields) -> Any:
    status, answer = everything.run.post(route, body)
    assert status == 200, answer
    assert isinstance(answer["request_id"], str)
    return everything.run.result(answer["request_id"])


def test_futures_of_a_run_are_what_the_sdk_reads(everything: Everything) -> None:
    run = RawRun(everything.run.server)
    fields = {"session_id": run.session_id, "model_seq_id": 1, "base_model": "tiny"}
    FUTURES["create_model"].model_validate(future(everything, "create_model", fields))
    raw = run.poll_until(run.forward_backward(1, some_data(1)))
    assert isinstance(raw, bytes)
    outputs = deserialize_forward_backward_output(raw).loss_fn_outputs
    assert len(outputs) == len(some_data(1))
    assert all(set(output) == {"logprobs", "elementwise_loss"} for output in outputs)

    def read(route: str, seq_id: int, **fields: Any) -> Any:
        answer = run.result(run.submit(route, seq_id, **fields))
        return FUTURES[route].model_validate(answer)

    FUTURES["optim_step"].model_validate(run.result(run.optim_step(2)))
    path = read("save_weights", 3).path
    read("load_weights", 4, path=path, optimizer=True)
    assert read("save_weights_for_sampler", 5, path="named").path.endswith("/named")
    unnamed = run.result(run.submit("save_weights_for_sampler", 6, sampling_session_seq_id=1))
    assert unnamed["path"] is None
    assert isinstance(unnamed["sampling_session_id"], str)
    read("save_weights_external", 7, path="out")
    refused = run.result(run.submit("load_weights", 8, path="nonsense", optimizer=True))
    assert types.RequestFailedResponse.model_validate(refused).category.value == "user"


def test_a_sample_is_what_the_sdk_reads(everything: Everything) -> None:
    body = {
        "sampling_session_id": everything.sampler,
        "seq_id": 0,
        "num_samples": 3,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]},
        "sampling_params": {"max_tokens": 4, "temperature": 1, "top_k": -1, "top_p": 1},
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 2,
        "topk_sample_logprobs": 3,
        "prompt_alt_tokens_k": 2,
        "type": "sample",
    }
    status, answer = everything.run.post("asample", body)
    assert status == 200, answer
    assert len(set(answer["sample_sequence_ids"])) == 3
    assert everything.run.post("asample", body)[1] == answer, "a retry is the same request"
    raw = b""
    while not raw:
        status, raw = everything.run.poll(answer["request_id"])
        assert status in (200, 408)
        raw = raw if status == 200 else b""
    response = deserialize_sample_response(raw)
    assert len(response.sequences) == 3
    assert all(len(s.logprobs) == len(s.tokens) for s in response.sequences)
    assert response.prompt_logprobs[0] is None
    assert len(response.topk_prompt_logprobs) == 3
    assert response.prompt_alt_tokens.tokens.shape == [2, 2]


def test_what_is_pending_says_so_in_the_protocol_s_words(everything: Everything) -> None:
    run = RawRun(everything.run.server)
    request_id = run.forward_backward(2, some_data(0))  # waits for number 1
    status, answer = run.post("retrieve_future", {"request_id": request_id})
    if status == 408:
        assert answer["type"] == "try_again"
        assert answer["queue_state"] in ("active", "paused_capacity", "paused_rate_limit")
    assert "did not arrive" in run.error(request_id)["error"]


@pytest.mark.parametrize(
    "line",
    [
        "POST auth/token",
        "GET samplers/nobody",
        "GET training_runs/nobody",
        "GET sessions/nobody",
        "POST retrieve_future",
        "POST get_info",
        "POST weights_info",
        "DELETE training_runs/nobody/checkpoints/weights/none",
        "GET nothing/of/the/kind",
    ],
)
def test_what_is_not_there_is_said_in_json(everything: Everything, line: str) -> None:
    method, route = line.split(" ")
    unknown = {"request_id": "x", "model_id": "x", "tinker_path": "tinker://x/weights/x"}
    body = unknown if method == "POST" else None
    status, answer = everything.run.post(route, body, method=method)
    assert 400 <= status < 500, answer
    assert len(answer["detail"]) > 10, json.dumps(answer)
