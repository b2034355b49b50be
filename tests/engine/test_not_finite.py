"""Numbers that are not finite are told, change nothing, and leave training able to go on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinker.lib.chunked_fwdbwd_helpers import combine_fwd_bwd_output_results
from tinker.proto import response_conv

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.ops import AdamParams, EngineOptions, OpError

from .graphs import LP, call, definition, graph, ref, trace
from .graphs import datum as row_datum
from .reference import Answer, Client, datum, request, samples

ADAM = AdamParams(learning_rate=1e-2, eps=1e-8)
FOUR = np.ones(4, np.float32)
GOOD = {"target_tokens": np.array([4, 5, 6, 7]), "weights": FOUR, "logprobs": -FOUR}
ITS_LOSS = "datum 1: its loss is not finite, or the loss's gradient, so the gradient of this batch"


def a_root(logprobs, weights):
    """Finite, with a gradient that is not: of a square root at zero."""
    return torch.sqrt(logprobs - logprobs).sum() + logprobs.sum(), {}


@dataclass(frozen=True)
class Case:
    """A datum whose loss or gradient overflows, behind and before good ones."""

    loss_fn: str
    changes: dict[str, np.ndarray]
    sentence: str = ITS_LOSS
    loss_is_finite: bool = False
    custom: str | None = None

    def body(self, **fields: Any) -> bytes:
        good = {**GOOD, "advantages": FOUR, "sequence_ratio_mask": FOUR}
        rows = [good, {**good, **self.changes}, good]
        if self.custom is not None:
            fields["loss_fn_config_v2"] = {"loss_id": pb.LossConfigValue(text="any")}
        data = [row_datum([3, 4, 5, 6], **row) for row in rows]
        return request(data, loss_fn=self.loss_fn, **fields)

    def send(self, client: Client, **fields: Any) -> Answer:
        return client.send(self.body(**fields), custom_loss=self.custom)


OF_THE_BATCH = "the gradient of this batch is not finite"
CASES = {
    "an infinite loss": Case("cross_entropy", {"weights": FOUR * 3e38}),
    "two infinities": Case("cross_entropy", {"weights": np.array([1, 3e38, -3e38, 1])}),
    "a gradient of the weights": Case(
        "cross_entropy", {"weights": np.array([1e37, 1e37, -1e37, 1e37])}, OF_THE_BATCH, True
    ),
    "importance sampling": Case("importance_sampling", {"logprobs": -200 * FOUR}),
    "ppo": Case("ppo", {"logprobs": -200 * FOUR, "advantages": -FOUR}),
    "cispo": Case("cispo", {"logprobs": -200 * FOUR, "advantages": 3e38 * FOUR}),
    "dro": Case("dro", {"logprobs": -1e30 * FOUR}),
    "gspo": Case("gspo", {"logprobs": -200 * FOUR, "advantages": -FOUR}),
    "a custom loss": Case(
        "custom",
        {"weights": np.array([1, 0, 1, 1])},
        custom=graph(call("operator.truediv", 1.0, ref("weights"))),
    ),
    "a custom loss's gradient": Case(
        "custom",
        {"weights": FOUR},
        sentence=r"datum \d: its loss is not finite, or the loss's gradient",
        loss_is_finite=True,
        custom=definition(trace(a_root, logprobs=1, weights=1)),
    ),
}
for _case in CASES.values():
    for _key, _array in _case.changes.items():
        _case.changes[_key] = _array.astype(np.float32)


def plain_json(stats: Any) -> None:
    json.dumps(asdict(stats), allow_nan=False)


@pytest.mark.parametrize("microbatch_tokens", [1, 1024])
@pytest.mark.parametrize("name", CASES)
def test_the_outputs_come_and_the_gradients_stay(
    client: Client, name: str, microbatch_tokens: int
) -> None:
    case = CASES[name]
    client.create()
    client.engine.options = EngineOptions(microbatch_tokens=microbatch_tokens)
    expected = case.send(client, forward_only=True)
    for accumulated in (False, True):
        if accumulated:
            client.backward(samples(0))
        before = client.gradients.clone()
        answer = case.send(client)
        assert answer.stats.not_finite is not None
        assert re.match(case.sentence, answer.stats.not_finite)
        assert math.isfinite(answer.metrics["loss:sum"]) == case.loss_is_finite
        assert (answer.stats.loss_sum is not None) == case.loss_is_finite
        plain_json(answer.stats)
        assert len(answer.logprobs) == 3
        for own, theirs in zip(answer.logprobs, expected.logprobs, strict=True):
            np.testing.assert_array_equal(own, theirs)
        np.testing.assert_equal(answer.metrics, expected.metrics)
        assert torch.equal(client.gradients, before)
        assert client.engine.runs["run"].has_gradients == accumulated


@pytest.mark.parametrize("name", CASES)
def test_forward_alone_reports_the_sum_only(client: Client, name: str) -> None:
    client.create()
    stats = CASES[name].send(client, forward_only=True).stats
    assert stats.not_finite is None  # no gradient was dropped
    assert (stats.loss_sum is not None) == CASES[name].loss_is_finite
    plain_json(stats)


def train(client: Client, mistake: Callable[[], None] = lambda: None) -> torch.Tensor:
    for seed in range(3):
        mistake()
        client.backward(samples(seed))
        mistake()
        client.backward(samples(seed + 10))
        client.step(ADAM)
    return client.weights.clone()


@pytest.fixture(scope="module")
def undisturbed(models: Callable[[str], Path]) -> torch.Tensor:
    client = Client(Engine(), models("untied"))
    client.create()
    return train(client)


@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_as_if_nothing_had_been(
    client: Client, undisturbed: torch.Tensor, name: str
) -> None:
    client.create()
    assert torch.equal(train(client, lambda: CASES[name].send(client) and None), undisturbed)


def test_what_was_computed_is_told_as_it_is(client: Client) -> None:
    client.create()
    # A pass for each datum: nothing of a later one is lost with an earlier one.
    client.engine.options = EngineOptions(microbatch_tokens=1)
    answer = CASES["two infinities"].send(client)
    good, bad, last = answer.elementwise
    assert np.isfinite(good).all()
    assert np.isfinite(last).all()
    assert bad[1] == math.inf
    assert bad[2] == -math.inf
    assert np.isfinite(bad[[0, 3]]).all()
    assert math.isnan(answer.metrics["loss:sum"])


def test_other_mistakes_of_the_same_batch_are_errors(client: Client) -> None:
    client.create()
    client.engine.options = EngineOptions(microbatch_tokens=1)
    client.backward(samples(0))
    before = client.gradients.clone()
    divided = call("operator.truediv", 1.0, ref("weights"))
    loss = graph(divided, call("operator.add", LP, ref("weights"), name="added"))
    rows = [{**GOOD, "weights": 0 * FOUR}, {**GOOD, "weights": FOUR[:3]}]
    config = {"loss_id": pb.LossConfigValue(text="any")}
    data = [row_datum([3, 4, 5, 6], **row) for row in rows]
    with pytest.raises(OpError, match="datum 1: custom loss 'hand-made': node 'added'"):
        client.send(request(data, loss_fn="custom", loss_fn_config_v2=config), custom_loss=loss)
    assert torch.equal(client.gradients, before)


def test_metrics_of_a_loss_may_be_any_numbers(client: Client) -> None:
    def loss(logprobs, weights):
        odd = weights.sum() / 0.0
        return logprobs.sum(), {"custom/infinite:sum": odd, "custom/huge:mean": weights.sum()}

    made = definition(trace(loss, logprobs=1, weights=1))
    case = Case("custom", {"weights": -FOUR}, custom=made)
    client.create()
    answer = case.send(client)
    assert answer.stats.not_finite is None
    assert math.isnan(answer.metrics["custom/infinite:sum"])  # one is negative, the others are not
    assert answer.metrics["custom/huge:mean"] == pytest.approx(4 / 3)
    assert client.gradients.any()


def test_the_sdk_reads_and_combines_such_answers(client: Client) -> None:
    client.create()
    parts = []
    for name in ("two infinities", "an infinite loss", "a gradient of the weights"):
        op = ops.ForwardBackward(run="run", body=CASES[name].body())
        parts.append(
            response_conv.deserialize_forward_backward_output(client.engine.handle(op)[1][0])
        )
    assert math.isnan(parts[0].metrics["loss:sum"])
    assert parts[1].metrics["loss:sum"] == math.inf
    both = combine_fwd_bwd_output_results(parts)
    assert math.isnan(both.metrics["loss:sum"])
    assert both.metrics["datums:sum"] == 9
    assert len(both.loss_fn_outputs) == 9
    assert math.isinf(combine_fwd_bwd_output_results(parts[1:]).metrics["loss:sum"])


# Steps


def state(client: Client) -> list[torch.Tensor]:
    run = client.engine.runs["run"]
    optimizer = run.optimizer
    return [t.clone() for t in (client.weights, optimizer.mean, optimizer.square, optimizer.count)]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_gradient_norm_that_is_not_finite_skips_the_step(client: Client, number: float) -> None:
    client.create()
    client.backward(samples(0))
    client.step(ADAM)
    before = state(client)
    client.backward(samples(1))
    client.gradients[3] = number  # as a person in an attached notebook might
    stats = client.step(ADAM)
    assert stats.skipped is not None
    assert f"gradient norm is {number}" in stats.skipped
    assert (stats.step, stats.grad_norm, stats.update_norm) == (1, None, None)
    plain_json(stats)
    assert all(torch.equal(a, b) for a, b in zip(before, state(client), strict=True))
    assert not client.gradients.any()
    assert not client.engine.runs["run"].has_gradients


@pytest.mark.parametrize("changes", [{"learning_rate": 1e300}, {"weight_decay": 1e300}], ids=str)
def test_an_update_that_is_not_finite_skips_the_step(
    client: Client, changes: dict[str, float]
) -> None:
    client.create()
    client.backward(samples(0))
    client.step(ADAM)
    before = state(client)
    norm = None
    for _ in range(2):
        client.backward(samples(1))
        stats = client.step(ADAM, **changes)
        assert stats.skipped is not None
        assert "would make the weights infinite" in stats.skipped
        assert (stats.step, stats.update_norm) == (1, None)
        assert stats.grad_norm == (norm or stats.grad_norm)  # those of the first were dropped
        assert stats.grad_norm is not None
        norm = stats.grad_norm
        plain_json(stats)
        assert all(torch.equal(a, b) for a, b in zip(before, state(client), strict=True))
        assert not client.gradients.any()


def test_steps_that_are_skipped_leave_no_trace(client: Client, undisturbed: torch.Tensor) -> None:
    client.create()
    for seed in range(3):
        client.backward([datum(sample) for sample in samples(99)])
        client.step(ADAM, learning_rate=1e300)
        client.backward(samples(seed))
        client.backward(samples(seed + 10))
        client.step(ADAM)
    assert torch.equal(client.weights, undisturbed)
