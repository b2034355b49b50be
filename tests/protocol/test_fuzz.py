"""Anything at all, sent to every route: never a 500, and never a future that does not come."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_tinker.server.handlers import HANDLERS
from jupyter_tinker.wire import tinker_pb2 as pb
from tests.protocol.conftest import Everything
from tests.raw import PROTOBUF, RawRun, some_data
from tests.servers import Server

pytestmark = pytest.mark.e2e

_UNHURRIED = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["encoded_text", "tinker://", "tiny", "../../etc/passwd", "\0", "😀" * 10]),
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
_POSTS = (
    "client/config",
    "client/dynamic_config",
    "create_session",
    "session_heartbeat",
    "telemetry",
    "sessions/search",
    "create_model",
    "get_info",
    "load_weights",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "save_weights_external",
    "create_custom_loss",
    "create_sampling_session",
    "join_sampling_session",
    "asample",
    "retrieve_future",
    "retrieve_futures",
    "cancel_future",
    "weights_info",
    "copy_weights",
)
# Fields that these routes know, so that what is drawn gets past the first check.
_FIELDS = [
    "session_id",
    "model_id",
    "sampling_session_id",
    "seq_id",
    "model_seq_id",
    "sampling_session_seq_id",
    "custom_loss_seq_id",
    "base_model",
    "model_path",
    "path",
    "lora_config",
    "optimizer_config",
    "adam_params",
    "optimizer",
    "num_samples",
    "prompt",
    "sampling_params",
    "prompt_logprobs",
    "target_prompt_logprobs",
    "graph",
    "inputs",
    "name",
    "request_id",
    "target",
    "prev_cursor",
    "retrieved_request_ids",
    "timeout",
    "tinker_path",
    "source_path",
    "ttl_seconds",
    "user_metadata",
    "tags",
    "owner",
    "limit",
    "kind",
]


def the_known(everything: Everything) -> dict[str, Any]:
    """Values of fields that lead somewhere."""
    return {
        "session_id": everything.run.session_id,
        "model_id": everything.run.id,
        "sampling_session_id": everything.sampler,
        "base_model": "tiny",
        "tinker_path": everything.paths["weights"],
        "source_path": everything.paths["weights"],
        "model_path": everything.paths["weights"],
    }


def check(everything: Everything, status: int, answer: Any) -> None:
    """A clear refusal, or an answer; a future that was promised comes."""
    assert status < 500, answer
    if status >= 400 and status != 408:
        assert isinstance(answer, dict), answer
        assert len(answer["detail"]) > 5
    elif isinstance(answer, dict) and "request_id" in answer and status == 200:
        result = everything.run.poll_until(answer["request_id"])
        if isinstance(result, dict) and "error" in result:
            assert result["category"] in ("user", "server")
            assert "Traceback" not in result["error"]


@pytest.mark.parametrize("route", _POSTS)
@given(data=st.data())
@_UNHURRIED
def test_any_json(everything: Everything, route: str, data: st.DataObject) -> None:
    known = the_known(everything)
    kept = data.draw(st.sets(st.sampled_from(sorted(known))), label="known fields")
    drawn = data.draw(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=6), label="fields")
    # Deletes and overwrites nothing that later examples need.
    body = {**drawn, **{name: known[name] for name in kept}}
    if isinstance(body.get("timeout"), (int, float)):
        body["timeout"] = 0.0
    check(everything, *everything.run.post(route, json.dumps(body).encode()))


@pytest.mark.parametrize("route", [*_POSTS, "forward_backward"])
@given(body=st.one_of(st.binary(max_size=60), _JSON.map(lambda v: json.dumps(v).encode())))
@_UNHURRIED
def test_any_bytes(everything: Everything, route: str, body: bytes) -> None:
    headers = PROTOBUF if route == "forward_backward" else None
    check(everything, *everything.run.post(route, body, headers=headers))


@given(data=st.data())
@settings(_UNHURRIED, max_examples=60)
def test_a_batch_with_bytes_changed(everything: Everything, data: st.DataObject) -> None:
    request = pb.ForwardBackwardRequest(
        model_id=everything.run.id,
        seq_id=data.draw(st.integers(0, 2**31 - 1)),
        data=some_data(1),
        loss_fn="cross_entropy",
        forward_only=True,
    )
    body = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    answer = everything.run.post("forward_backward", bytes(body[:cut]), headers=PROTOBUF)
    check(everything, *answer)


@given(data=st.data())
@settings(_UNHURRIED, max_examples=80)
def test_any_sample(everything: Everything, data: st.DataObject) -> None:
    """Bodies of the right form with any values."""
    tokens = st.lists(st.integers(-2, 400), max_size=8)
    stop = st.one_of(
        st.none(), st.text(max_size=8), st.lists(st.text(max_size=5), max_size=3), tokens
    )
    body = {
        "sampling_session_id": everything.sampler,
        "seq_id": data.draw(st.integers(10, 2**31 - 1)),
        "num_samples": data.draw(st.integers(-1, 4)),
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": data.draw(tokens)}]},
        "sampling_params": {
            "max_tokens": data.draw(st.one_of(st.integers(-1, 8), st.just(10**9))),
            "temperature": data.draw(st.floats(-0.5, 3)),
            "top_k": data.draw(st.integers(-1, 5)),
            "top_p": data.draw(st.floats(-0.1, 1.1)),
            "seed": data.draw(st.one_of(st.none(), st.integers(-5, 5))),
            "stop": data.draw(stop),
        },
        "prompt_logprobs": data.draw(st.booleans()),
        "topk_prompt_logprobs": data.draw(st.integers(-1, 5)),
        "topk_sample_logprobs": data.draw(st.integers(-1, 5)),
        "prompt_alt_tokens_k": data.draw(st.integers(-1, 3)),
        "prompt_logprobs_last_n": data.draw(st.one_of(st.none(), st.integers(-1, 9))),
    }
    check(everything, *everything.run.post("asample", json.dumps(body).encode()))


_NOT_AN_OBJECT = _JSON.filter(lambda value: not isinstance(value, dict))


def _refused(run: RawRun, seq_id: int, draw: st.DataObject) -> str:
    """Sends what cannot be done; returns the future's id."""
    kind = draw.draw(st.sampled_from(("forward_backward", "optim_step", "load_weights")))
    if kind == "forward_backward":
        loss = draw.draw(st.text(max_size=20)) + "?"
        return run.forward_backward(seq_id, some_data(seq_id), loss)
    if kind == "optim_step":
        return run.submit(kind, seq_id, adam_params=draw.draw(_NOT_AN_OBJECT))
    return run.submit(kind, seq_id, path=draw.draw(_JSON), optimizer=True)


def _numbers(run: RawRun, first: int) -> list[float]:
    """The losses of some steps, the first of whose requests has this number."""
    losses = []
    for seq_id in range(first, first + 8, 2):
        losses.append(run.loss(run.forward_backward(seq_id, some_data(seq_id - first))))
        assert "error" not in run.result(run.optim_step(seq_id + 1))
    return losses


def test_what_is_refused_changes_no_run(server: Server) -> None:
    run, twin = RawRun(server), RawRun(server)
    assert _numbers(run, 1) == _numbers(twin, 1)
    upto = [9]

    @given(data=st.data())
    @settings(_UNHURRIED, max_examples=100)
    def refuse(data: st.DataObject) -> None:
        assert "error" in run.result(_refused(run, upto[0], data))
        upto[0] += 1

    refuse()
    # The step that was refused last is dropped as a whole, and is none.
    assert "error" in run.result(run.forward_backward(upto[0], some_data(1), "?"))
    assert "was not done" in run.error(run.optim_step(upto[0] + 1))["error"]
    assert _numbers(run, upto[0] + 2) == _numbers(twin, 9)


def test_the_server_lives_and_the_run_goes_on(everything: Everything) -> None:
    """After all of that."""
    log = everything.run.server.log
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    data = some_data(3)
    fresh = type(everything.run)(everything.run.server)
    assert np.isfinite(fresh.loss(fresh.forward_backward(1, data)))


def test_every_post_is_here() -> None:
    posts = {
        pattern.removesuffix("/?").removeprefix("/tinker/api/v1/")
        for pattern, handler, *_ in HANDLERS
        if pattern.startswith("/tinker/api/v1/") and "(" not in pattern
        if "post" in vars(handler)
    }
    assert posts - {"auth/token"} <= {*_POSTS, "forward_backward"}
