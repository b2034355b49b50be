"""Every loss against its formula, written out once more over the full logits of a plain model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.ops import EngineOptions, OpError

from .reference import Answer, Client, PlainLoop, Sample, request, samples, tensor, text

Formula = Callable[[torch.Tensor, dict[str, torch.Tensor], dict[str, float]], torch.Tensor]
LENGTHS = (9, 31, 4, 17, 17, 1)


@dataclass(frozen=True)
class Rollout:
    """A prompt and what was sampled after it, as reinforcement learning sends it."""

    tokens: list[int]
    targets: np.ndarray
    inputs: dict[str, np.ndarray]  # float32, (N,)

    def datum(self, **changes: np.ndarray | None) -> pb.Datum:
        made = pb.Datum(model_input=[text(self.tokens)])
        arrays = {"target_tokens": self.targets, **self.inputs, **changes}
        for name, array in arrays.items():
            if array is not None:
                made.loss_fn_inputs[name].CopyFrom(tensor(array))
        return made


def rollouts(plain: PlainLoop, seed: int, lengths: Sequence[int] = LENGTHS) -> list[Rollout]:
    """Sampled by a policy near the model's; the first third is the prompt, without advantage."""
    rng = np.random.default_rng(seed)
    made = []
    for sample in samples(seed, lengths):
        with torch.no_grad():
            lp = plain.logprobs([sample])[0].numpy()
        inside = np.arange(len(lp)) >= len(lp) // 3
        advantages = rng.normal(size=len(lp)) * inside * (rng.random(len(lp)) < 0.9)
        old = np.where(inside, np.minimum(lp + rng.normal(size=len(lp)) * 0.4, 0), 0)
        inputs = {"logprobs": old, "advantages": advantages, "sequence_ratio_mask": inside}
        inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
        made.append(Rollout(sample.tokens, sample.targets, inputs))
    return made


def importance_sampling(lp, x, config):
    return -(torch.exp(lp - x["logprobs"]) * x["advantages"])


def ppo(lp, x, config):
    low, high = config.get("clip_low_threshold", 0.8), config.get("clip_high_threshold", 1.2)
    ratio, a = torch.exp(lp - x["logprobs"]), x["advantages"]
    clipped = torch.where(ratio < low, low, torch.where(ratio > high, high, ratio))
    return torch.where(ratio * a < clipped * a, -ratio * a, -clipped * a)


def cispo(lp, x, config):
    low, high = config.get("clip_low_threshold", 0.0), config.get("clip_high_threshold", 4.0)
    with torch.no_grad():
        weight = torch.exp(lp - x["logprobs"])
        weight[weight < low] = low
        weight[weight > high] = high
    return -weight * x["advantages"] * lp


def dro(lp, x, config):
    distance = lp - x["logprobs"]
    return -(lp * x["advantages"] - config.get("beta", 0.05) / 2 * distance * distance)


def gspo(lp, x, config):
    low = config.get("clip_low_threshold", 0.9997)
    high = config.get("clip_high_threshold", 1.0004)
    inside = x["sequence_ratio_mask"] != 0
    with torch.no_grad():
        s = float((lp - x["logprobs"])[inside].sum() / inside.sum())
    ratio = torch.exp(torch.tensor(s)) * torch.exp(lp - lp.detach())
    a = x["advantages"]
    clipped = torch.where(ratio < low, low, torch.where(ratio > high, high, ratio))
    return torch.where(ratio * a < clipped * a, -ratio * a, -clipped * a)


FORMULAS: dict[str, Formula] = {
    "importance_sampling": importance_sampling,
    "ppo": ppo,
    "cispo": cispo,
    "dro": dro,
    "gspo": gspo,
}
CASES: list[tuple[str, dict[str, float]]] = [
    ("importance_sampling", {}),
    ("ppo", {}),
    ("ppo", {"clip_low_threshold": 0.95, "clip_high_threshold": 1.5}),
    ("ppo", {"clip_high_threshold": 1.01}),
    ("cispo", {}),
    ("cispo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
    ("dro", {}),
    ("dro", {"beta": 0.7}),
    ("dro", {"beta": 0.0}),
    ("gspo", {}),
    ("gspo", {"clip_low_threshold": 0.95, "clip_high_threshold": 1.04}),
]


@pytest.fixture
def plain(client: Client, tmp_path: Path) -> PlainLoop:
    """The plain loop at the run's own weights, a few steps from its start."""
    client.create()
    for seed in range(3):
        client.backward(samples(seed))
        client.step(learning_rate=1e-2, eps=1e-8)
    client.save(tmp_path / "start")
    return PlainLoop(Path(client.base), tmp_path / "start")


def reference(
    plain: PlainLoop, data: Sequence[Rollout], name: str, config: dict[str, float]
) -> list[torch.Tensor]:
    """Every datum's loss per token; the gradient is left in the plain model's parameters."""
    values = []
    for rollout in data:
        lp = plain.logprobs([Sample(rollout.tokens, rollout.targets, None)])[0]
        x = {key: torch.from_numpy(array) for key, array in rollout.inputs.items()}
        values.append(FORMULAS[name](lp, x, config))
    plain.optimizer.zero_grad()
    torch.cat(values).sum().backward()
    return [value.detach() for value in values]


def assert_same_gradient(client: Client, plain: PlainLoop) -> None:
    own = client.engine.runs[client.run].adapter.gradient_views
    assert own.keys() == plain.gradients.keys()
    for name, expected in plain.gradients.items():
        torch.testing.assert_close(own[name], expected, atol=2e-4, rtol=2e-4)
    assert client.gradients.any()


def send(client: Client, data: Sequence[Rollout], name: str, **fields: Any) -> Answer:
    return client.backward([rollout.datum() for rollout in data], loss_fn=name, **fields)


@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_values_and_gradients_are_the_formula(
    client: Client, plain: PlainLoop, name: str, config: dict[str, float]
) -> None:
    data = rollouts(plain, 5)
    expected = reference(plain, data, name, config)
    # Small passes, so that the datums come in several.
    client.engine.options = EngineOptions(microbatch_tokens=40)
    answer = send(client, data, name, loss_fn_config=config)
    for own, value in zip(answer.elementwise, expected, strict=True):
        np.testing.assert_allclose(own, value.numpy(), atol=1e-4, rtol=1e-4)
    total = float(torch.cat(expected).double().sum())
    assert answer.metrics["loss:sum"] == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert_same_gradient(client, plain)
    for key, value in config.items():
        assert answer.metrics[f"{key}:mean"] == pytest.approx(value)


def test_clipping_is_at_work_in_these_tests(plain: PlainLoop) -> None:
    """Else the comparisons above would hold for a loss that never clips."""
    data = rollouts(plain, 5)
    x = {key: np.concatenate([r.inputs[key] for r in data]) for key in data[0].inputs}
    with torch.no_grad():
        bare = [Sample(r.tokens, r.targets, None) for r in data]
        lp = [own.numpy() for own in plain.logprobs(bare)]
    of_sequences = [
        np.exp((own - r.inputs["logprobs"])[r.inputs["sequence_ratio_mask"] != 0].mean())
        for own, r in zip(lp, data, strict=True)
    ]
    assert min(of_sequences) < 0.95
    assert max(of_sequences) > 1.04
    assert any(0.95 < ratio < 1.04 for ratio in of_sequences)
    ratio = np.exp(np.concatenate(lp) - x["logprobs"])
    for positive in (True, False):
        chosen = ratio[(x["advantages"] > 0) if positive else (x["advantages"] < 0)]
        for low, high in ((0.8, 1.2), (0.9, 1.1)):
            assert (chosen < low).any()
            assert (chosen > high).any()
            assert ((chosen > low) & (chosen < high)).any()


@pytest.mark.parametrize("name", FORMULAS)
def test_the_split_of_a_batch_does_not_matter(client: Client, plain: PlainLoop, name: str) -> None:
    data = rollouts(plain, 6)
    whole = send(client, data, name)
    at_once = client.gradients.clone()
    client.zero_grad()
    parts = [send(client, data[i : i + 2], name) for i in range(0, len(data), 2)]
    torch.testing.assert_close(client.gradients, at_once, atol=2e-4, rtol=2e-4)
    for key, value in whole.metrics.items():
        if key.endswith(":sum"):
            assert sum(p.metrics[key] for p in parts) == pytest.approx(value, rel=1e-4, abs=1e-3)
        else:
            assert {p.metrics[key] for p in parts} == {value}


@pytest.mark.parametrize("name", FORMULAS)
def test_forward_only_gives_the_same_answer_and_no_gradient(
    client: Client, plain: PlainLoop, name: str
) -> None:
    data = rollouts(plain, 7)
    forward = send(client, data, name, forward_only=True)
    assert not client.gradients.any()
    backward = send(client, data, name)
    assert forward.metrics == backward.metrics
    for one, other in zip(forward.logprobs, backward.logprobs, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", FORMULAS)
def test_without_advantages_only_dro_has_a_gradient(
    client: Client, plain: PlainLoop, name: str
) -> None:
    data = rollouts(plain, 8)
    for rollout in data:
        rollout.inputs["advantages"][:] = 0
    answer = send(client, data, name)
    assert client.gradients.any() == (name == "dro")
    tokens = sum(len(rollout.tokens) for rollout in data)
    assert answer.stats.weight_sum == (tokens if name == "dro" else 0)
    assert answer.metrics["policy_tokens:sum"] == 0
    assert answer.metrics["kl:sum"] == 0


def test_what_the_policy_losses_report(client: Client, plain: PlainLoop) -> None:
    data = rollouts(plain, 9)
    answer = send(client, data, "ppo")
    advantages = np.concatenate([rollout.inputs["advantages"] for rollout in data])
    old = np.concatenate([rollout.inputs["logprobs"] for rollout in data])
    log_ratio = (np.concatenate(answer.logprobs) - old)[advantages != 0]
    assert answer.stats.weight_sum == (advantages != 0).sum()
    assert answer.metrics["policy_tokens:sum"] == (advantages != 0).sum()
    assert answer.metrics["kl:sum"] == pytest.approx(-log_ratio.sum(), rel=1e-4)
    ratio = np.exp(log_ratio)
    assert answer.metrics["clipped_tokens:sum"] == ((ratio < 0.8) | (ratio > 1.2)).sum()
    assert all(key.count(":") == 1 for key in answer.metrics)


def test_defaults_that_are_ours_are_told(client: Client, plain: PlainLoop) -> None:
    data = rollouts(plain, 9)
    assert send(client, data, "dro").metrics["beta:mean"] == 0.05
    metrics = send(client, data, "gspo").metrics
    assert metrics["clip_low_threshold:mean"] == 1 - 3e-4
    assert metrics["clip_high_threshold:mean"] == 1 + 4e-4


def test_on_policy_importance_sampling_is_reinforce(client: Client) -> None:
    """With the sampler's own log-probabilities the ratio is one, and its gradient is lp's."""
    client.create()
    sample = samples(3)[1]
    q = client.forward([sample]).logprobs[0]
    client.backward([sample])
    reinforce = client.gradients.clone()
    client.zero_grad()
    inputs = {"logprobs": q, "advantages": sample.weights}
    send(client, [Rollout(sample.tokens, sample.targets, inputs)], "importance_sampling")
    torch.testing.assert_close(client.gradients, reinforce)


def test_provenance_and_foreign_inputs_change_nothing(client: Client, plain: PlainLoop) -> None:
    rollout = rollouts(plain, 4)[1]
    span = pb.ProvenanceSpan(
        sampled_tokens=pb.SampledProvenanceSpan(sequence_id="s", offset=0, length=31)
    )
    for name in FORMULAS:
        bare, dressed = rollout.datum(), rollout.datum(notes=np.full(3, np.nan, np.float32))
        dressed.model_input_spans.append(span)
        dressed.loss_fn_input_spans.append(span)
        one = client.backward([bare], loss_fn=name)
        assert client.backward([dressed], loss_fn=name).metrics == one.metrics


GOOD = Rollout(
    [3, 4, 5, 6],
    np.array([4, 5, 6, 7]),
    {
        "logprobs": np.array([0, -1, -2, -1], np.float32),
        "advantages": np.array([0, 1, 1, -1], np.float32),
        "sequence_ratio_mask": np.array([0, 1, 1, 1], np.float32),
    },
)
FOUR = np.ones(4, np.float32)
REFUSED = {
    "unknown": ("reinforce", {}, "no loss 'reinforce'; it has cross_entropy, .*gspo, custom"),
    "unpublished": ("stable_reinforce", {}, "'stable_reinforce', because .* not published; it has"),
    "custom without its graph": ("custom", {}, "create_custom_loss"),
    "no advantages": ("ppo", {"advantages": None}, r"ppo needs loss_fn_inputs\['advantages'\]"),
    "no logprobs": ("dro", {"logprobs": None}, r"dro needs loss_fn_inputs\['logprobs'\]"),
    "no mask": ("gspo", {"sequence_ratio_mask": None}, r"gspo needs .*\['sequence_ratio_mask'\]"),
    "empty mask": ("gspo", {"sequence_ratio_mask": 0 * FOUR}, "datum 1: .*zero everywhere"),
    "nan": ("cispo", {"logprobs": FOUR * np.nan}, r"\['logprobs'\] holds NaN"),
    "infinity": ("cispo", {"advantages": FOUR * np.inf}, r"\['advantages'\] holds NaN"),
    "too short": ("ppo", {"advantages": FOUR[:3]}, r"shape \[3\] and target_tokens \[4\]"),
    "two dimensions": (
        "ppo",
        {"target_tokens": np.zeros((4, 2), np.int64)},
        "has two dimensions; ppo takes one target a token",
    ),
    "a threshold for each token": (
        "ppo",
        {"clip_low_threshold": FOUR},
        "ppo takes clip_low_threshold from loss_fn_config",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_are_refused_and_leave_no_trace(client: Client, case: str) -> None:
    name, changes, sentence = REFUSED[case]
    client.create()
    client.backward(samples(0))
    before = client.gradients.clone()
    # A pass for each datum: the good one has left its gradient when the bad one fails.
    client.engine.options = EngineOptions(microbatch_tokens=1)
    body = request([GOOD.datum(), GOOD.datum(**changes)], loss_fn=name)
    with pytest.raises(OpError, match=sentence) as caught:
        client.send(body)
    assert caught.value.category == "user"
    assert torch.equal(client.gradients, before)


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        (
            "importance_sampling",
            {"beta": 0.1},
            "no loss_fn_config key 'beta'; it allows none",
        ),
        ("ppo", {"beta": 0.1}, "it allows clip_high_threshold, clip_low_threshold"),
        ("ppo", {"epsilon": 0.1}, "key 'epsilon'"),
        ("dro", {"beta": float("nan")}, "finite number"),
        ("gspo", {"clip_high_threshold": float("inf")}, "finite number"),
        ("cispo", {"clip_low_threshold": 5.0}, "5 above clip_high_threshold 4"),
    ],
    ids=str,
)
def test_bad_settings(client: Client, name: str, config: dict[str, float], sentence: str) -> None:
    client.create()
    with pytest.raises(OpError, match=sentence):
        client.backward([GOOD.datum()], loss_fn=name, loss_fn_config=config)


@settings(max_examples=30, deadline=None)
@given(
    numbers=st.lists(
        st.floats(-60, 0, width=32) | st.sampled_from([-1e4, -3e38]), min_size=4, max_size=4
    ),
    advantages=st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4),
    name=st.sampled_from(list(FORMULAS)),
)
def test_any_numbers_are_computed(
    shared: Client, numbers: list[float], advantages: list[float], name: str
) -> None:
    changes = {
        "logprobs": np.array(numbers, np.float32),
        "advantages": np.array(advantages, np.float32),
    }
    answer = shared.backward([GOOD.datum(**changes)], loss_fn=name)
    if answer.stats.not_finite is None:
        assert np.isfinite(answer.metrics["loss:sum"])
        assert torch.isfinite(shared.gradients).all()
    else:
        assert not shared.gradients.any()
    shared.zero_grad()


@pytest.fixture(scope="module")
def shared(models: Callable[[str], Path]) -> Client:
    client = Client(Engine(), models("untied"))
    client.create()
    return client
