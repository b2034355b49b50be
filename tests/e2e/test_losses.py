"""Every loss of the API through the unmodified SDK."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tinker
from tinker import types

from tests.servers import Server

from .rollouts import ADAM, make, rollouts

pytestmark = pytest.mark.e2e
Formula = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _sequence_ratio(lp: np.ndarray, q: np.ndarray) -> np.ndarray:
    inside = q != 0
    return np.full(lp.shape, np.exp((lp - q)[inside].mean()))


def _clip(ratio: np.ndarray, a: np.ndarray, low: float, high: float) -> np.ndarray:
    return -np.minimum(ratio * a, np.clip(ratio, low, high) * a)


FORMULAS: dict[str, tuple[dict[str, float], Formula]] = {
    "importance_sampling": ({}, lambda lp, q, a: -np.exp(lp - q) * a),
    "ppo": ({"clip_low_threshold": 0.9}, lambda lp, q, a: _clip(np.exp(lp - q), a, 0.9, 1.2)),
    "cispo": (
        {"clip_high_threshold": 1.1},
        lambda lp, q, a: -np.clip(np.exp(lp - q), 0.0, 1.1) * lp * a,
    ),
    "dro": ({"beta": 0.05}, lambda lp, q, a: -(lp * a - 0.025 * (lp - q) ** 2)),
    "gspo": ({}, lambda lp, q, a: _clip(_sequence_ratio(lp, q), a, 1 - 3e-4, 1 + 4e-4)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_policy_losses(service: tinker.ServiceClient, a_server: Server, name: str) -> None:
    client, data = make(service), rollouts(1)
    config, formula = FORMULAS[name]
    first = client.forward_backward(data, name, config).result()
    expected = sum(
        formula(
            output["logprobs"].to_numpy(),
            datum.loss_fn_inputs["logprobs"].to_numpy(),
            datum.loss_fn_inputs["advantages"].to_numpy(),
        ).sum()
        for datum, output in zip(data, first.loss_fn_outputs, strict=True)
    )
    assert first.metrics["loss:sum"] == pytest.approx(float(expected), rel=1e-4)
    tokens = sum(int((d.loss_fn_inputs["advantages"].to_numpy() != 0).sum()) for d in data)
    assert first.metrics["policy_tokens:sum"] == tokens
    stepped = client.optim_step(ADAM).result().metrics
    assert stepped["grad_norm"] > 0
    again = client.forward(data, name, config).result()
    if name == "dro":  # whose penalty weighs more than its advantages here
        assert again.metrics["loss:sum"] < first.metrics["loss:sum"]
    else:
        assert _favour(data, again) > _favour(data, first)
    row = a_server.fetch(f"tinker/runs/{client.get_info().model_id}/steps")[1]["steps"][0]
    counted = sum(d.model_input.length for d in data) if name == "dro" else tokens
    assert row["weight_sum"] == counted
    assert row["loss_mean"] == pytest.approx(first.metrics["loss:sum"] / counted)


def _favour(data: list[types.Datum], answer: types.ForwardBackwardOutput) -> float:
    """How likely the policy makes what did well, against what did badly."""
    return sum(
        float((d.loss_fn_inputs["advantages"].to_numpy() * output["logprobs"].to_numpy()).sum())
        for d, output in zip(data, answer.loss_fn_outputs, strict=True)
    )


def test_settings_of_ours_come_back_as_metrics(service: tinker.ServiceClient) -> None:
    client = make(service)
    metrics = client.forward(rollouts(2), "dro").result().metrics
    assert metrics["beta:mean"] == pytest.approx(0.05)
    metrics = client.forward(rollouts(2), "gspo").result().metrics
    assert metrics["clip_low_threshold:mean"] == pytest.approx(1 - 3e-4)


def test_provenance_is_tolerated_and_stable_reinforce_refused(
    service: tinker.ServiceClient,
) -> None:
    client, datum = make(service), rollouts(3, count=1)[0]
    spans = [types.PromptProvenanceSpan(sequence_id="s", length=datum.model_input.length)]
    dressed = datum.with_provenance(model_input=spans, loss_fn_inputs=spans)
    for name, (config, _) in FORMULAS.items():
        bare = client.forward([datum], name, config).result().metrics
        assert client.forward([dressed], name, config).result().metrics == bare
    with pytest.raises(tinker.RequestFailedError, match=r"objective is not published.*gspo"):
        client.forward_backward([dressed], "stable_reinforce").result()
    with pytest.raises(tinker.RequestFailedError, match="forward_backward number"):
        client.optim_step(ADAM).result()
    assert client.forward_backward([dressed], "ppo").result().metrics["loss:sum"] != 0
