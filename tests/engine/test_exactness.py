"""The engine computes what a plain transformers + PEFT + torch loop computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jupyter_tinker.engine import adamw, logprobs
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.wrappers import plain
from jupyter_tinker.wire.ops import AdamParams, EngineOptions

from .reference import Client, PlainLoop, samples

Models = Callable[[str], Path]

EVERYTHING: dict[str, Any] = {}
ATTENTION = {"train_mlp": False, "train_unembed": False}
MLP = {"train_attn": False, "train_unembed": False}
UNEMBED = {"train_attn": False, "train_mlp": False}

# At larger rates Adam blows rounding up: the plain loop then strays from itself when it is given
# the same batch one datum at a time.
FAST = AdamParams(learning_rate=3e-3, eps=1e-8)


def assert_follows(
    client: Client, tmp_path: Path, adam: AdamParams, steps: int = 5, k: int = 0
) -> None:
    """Run and plain loop side by side from the run's own first weights."""
    client.save(tmp_path / "first")
    plain = PlainLoop(Path(client.base), tmp_path / "first")
    for seed in range(steps):
        data = samples(seed, k=k)
        logprobs_, loss = plain.backward(data)
        answer = client.backward(data)
        for own, expected in zip(answer.logprobs, logprobs_, strict=True):
            np.testing.assert_allclose(own, expected, atol=1e-4)
        assert answer.stats.loss_sum == pytest.approx(loss, abs=1e-3, rel=1e-4)
        assert client.step(adam).grad_norm == pytest.approx(plain.step(adam), rel=1e-4)


@pytest.mark.parametrize("lora", [EVERYTHING, ATTENTION, MLP, UNEMBED], ids=str)
@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_five_steps_follow_the_plain_loop(
    engine: Engine, models: Models, tmp_path: Path, kind: str, lora: dict[str, bool]
) -> None:
    client = Client(engine, models(kind))
    client.create(**lora)
    assert_follows(client, tmp_path, FAST)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "cohere", "gpt_neox"])
@pytest.mark.parametrize("k", [0, 3])
def test_other_architectures_follow_it_too(
    engine: Engine, models: Models, tmp_path: Path, kind: str, k: int
) -> None:
    client = Client(engine, models(kind))
    client.create()
    assert_follows(client, tmp_path, FAST, k=k)


@pytest.mark.parametrize(
    "adam",
    [
        AdamParams(),
        AdamParams(learning_rate=1e-3, beta1=0.5, beta2=0.7, eps=1e-3),
        AdamParams(learning_rate=3e-3, eps=1e-6, weight_decay=0.3),
        AdamParams(learning_rate=3e-3, eps=1e-6, grad_clip_norm=0.05),
        AdamParams(learning_rate=3e-3, eps=1e-6, grad_clip_norm=1e9),
        AdamParams(learning_rate=5e-4, beta1=0.0, beta2=0.0, eps=1e-2),
        AdamParams(learning_rate=0.0),
    ],
    ids=str,
)
def test_every_field_of_adam_counts(client: Client, tmp_path: Path, adam: AdamParams) -> None:
    client.create()
    assert_follows(client, tmp_path, adam)


def test_changing_the_settings_between_steps(client: Client, tmp_path: Path) -> None:
    client.create()
    client.save(tmp_path / "first")
    plain = PlainLoop(Path(client.base), tmp_path / "first")
    for seed, lr in enumerate([3e-3, 0.0, 5e-3, 1e-3]):
        adam = AdamParams(lr, beta1=0.5 + seed / 10, weight_decay=seed / 10, grad_clip_norm=seed)
        plain.backward(samples(seed))
        client.backward(samples(seed))
        assert client.step(adam).grad_norm == pytest.approx(plain.step(adam), rel=1e-4)
    final = torch.cat([p.detach().flatten() for p in plain.parameters])
    assert torch.linalg.vector_norm(final) == pytest.approx(
        float(torch.linalg.vector_norm(client.weights)), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["untied", "gemma2"])
@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("keep", [0, 1 << 20])
def test_small_chunks_kept_or_recomputed(
    engine: Engine,
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    k: int,
    keep: int,
) -> None:
    monkeypatch.setattr(logprobs, "_MIN_CHUNK_ROWS", 7)
    monkeypatch.setattr(logprobs, "_CHUNK_BYTES", {"cpu": 0})
    monkeypatch.setattr(logprobs, "_KEEP_BYTES", {"cpu": keep})
    client = Client(engine, models(kind))
    client.create()
    assert_follows(client, tmp_path, FAST, steps=3, k=k)


def test_output_layer_with_a_bias() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(50, 8), torch.randn(50)
    hidden = torch.randn(6, 8, requires_grad=True)
    targets = torch.randint(0, 50, (6, 2))
    c = torch.randn(6, 2)
    layer = logprobs.OutputLayer(weight, bias)
    scores = logprobs.Scores(layer, hidden.detach(), targets, torch.ones(6, dtype=torch.bool))
    expected = torch.log_softmax(hidden @ weight.T + bias, -1).gather(1, targets)
    (gradient,) = torch.autograd.grad((expected * c).sum(), hidden)
    torch.testing.assert_close(scores.logprobs, expected.detach())
    torch.testing.assert_close(scores.backward(c, None), gradient)


def test_confident_predictions_keep_their_gradient_in_bfloat16() -> None:
    """Near certainty W[t] - p W cancels; the gradient must not drown in bfloat16's rounding."""
    torch.manual_seed(0)
    weight = torch.randn(40, 64)
    targets = torch.arange(40)[:, None]
    hidden = weight * 0.12  # log-probabilities around -0.01
    c = torch.ones(40, 1)
    active = torch.ones(40, dtype=torch.bool)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        layer = logprobs.OutputLayer(weight.to(torch.bfloat16).to(dtype))
        rounded = hidden.to(torch.bfloat16).to(dtype)
        return logprobs.Scores(layer, rounded, targets, active).backward(c, None).float()

    exact = gradient(torch.float32)
    error = torch.linalg.vector_norm(gradient(torch.bfloat16) - exact)
    assert error < 0.05 * torch.linalg.vector_norm(exact)


def test_the_input_embedding_of_a_tied_model_stays_as_it_is(engine: Engine, models: Models) -> None:
    client = Client(engine, models("tied"))
    client.create(**UNEMBED)
    model = engine.runs["run"].base.model
    before = {name: p.clone() for name, p in model.named_parameters() if "lora" not in name}
    hidden_before = engine.runs["run"].base.hidden_states(torch.arange(5)[None])
    for seed in range(2):
        client.backward(samples(seed))
        assert client.step(FAST).update_norm > 0
    assert model.get_input_embeddings().weight is plain(model.lm_head).weight
    for name, p in model.named_parameters():
        assert "lora" in name or torch.equal(p, before[name])
    assert torch.equal(hidden_before, engine.runs["run"].base.hidden_states(torch.arange(5)[None]))


def test_forward_and_backward_give_the_same_numbers(client: Client) -> None:
    client.create()
    client.backward(samples(0))
    client.step(FAST)
    forward = client.forward(samples(1))
    assert not client.gradients.any()
    backward = client.backward(samples(1))
    assert client.gradients.any()
    for one, other in zip(forward.logprobs, backward.logprobs, strict=True):
        assert np.array_equal(one, other)
    assert forward.metrics == backward.metrics


def test_forward_leaves_accumulated_gradients_alone(client: Client) -> None:
    client.create()
    client.backward(samples(0))
    before = client.gradients.clone()
    client.forward(samples(1))
    assert torch.equal(before, client.gradients)


def test_a_datum_does_not_depend_on_its_company(base: Path) -> None:
    data = samples(1, lengths=(3, 40, 1, 22, 7, 7, 64))
    together = Client(Engine(), base)
    together.create()
    cramped = Client(Engine(EngineOptions(microbatch_tokens=30)), base)
    cramped.create()
    all_at_once, split = together.backward(data), cramped.backward(data)
    torch.testing.assert_close(together.gradients, cramped.gradients, atol=1e-4, rtol=1e-4)
    for index, sample in enumerate(data):
        alone = together.forward([sample]).logprobs[0]
        np.testing.assert_allclose(alone, all_at_once.logprobs[index], atol=1e-5)
        np.testing.assert_allclose(alone, split.logprobs[index], atol=1e-5)


def test_several_calls_accumulate_like_one(base: Path) -> None:
    whole, parts = Client(Engine(), base), Client(Engine(), base)
    whole.create()
    parts.create()
    data = samples(1, lengths=(5, 9, 13, 8))
    whole.backward(data)
    for sample in data:
        parts.backward([sample])
    torch.testing.assert_close(whole.gradients, parts.gradients, atol=1e-4, rtol=1e-4)


def test_outputs_and_metrics(client: Client) -> None:
    client.create()
    data = samples(2, k=3)
    answer = client.backward([*data, *samples(3)])
    for sample, lp, loss in zip(
        [*data, *samples(3)], answer.logprobs, answer.elementwise, strict=True
    ):
        assert lp.shape == sample.targets.shape
        assert loss.shape == (len(sample.tokens),)
        expected = -(sample.weights * lp).reshape(len(loss), -1).sum(1)
        np.testing.assert_allclose(loss, expected, atol=1e-5)
    assert answer.metrics["loss:sum"] == answer.stats.loss_sum
    assert answer.metrics["tokens:sum"] == answer.stats.num_tokens == 2 * (9 + 17 + 5 + 12)
    assert answer.metrics["datums:sum"] == answer.stats.num_datums == 8
    weights = sum(float(s.weights.sum()) for s in [*data, *samples(3)])
    assert answer.stats.weight_sum == pytest.approx(weights, abs=1e-4)


def test_absent_weights_are_ones(client: Client) -> None:
    client.create()
    data = samples(4)
    ones = [replace(s, weights=np.ones(len(s.tokens), np.float32)) for s in data]
    none = [replace(s, weights=None) for s in data]
    assert client.backward(none).stats.loss_sum == client.backward(ones).stats.loss_sum
    assert client.backward(none).stats.weight_sum == 43


def test_zero_weights_give_no_gradient_but_logprobs(client: Client) -> None:
    client.create()
    data = [replace(s, weights=np.zeros(len(s.tokens), np.float32)) for s in samples(4)]
    answer = client.backward(data)
    assert not client.gradients.any()
    assert all((lp < 0).all() for lp in answer.logprobs)


def test_a_step_without_gradients_follows_momentum_and_decay(
    client: Client, tmp_path: Path
) -> None:
    client.create()
    client.save(tmp_path / "first")
    plain = PlainLoop(Path(client.base), tmp_path / "first")
    adam = AdamParams(learning_rate=1e-2, eps=1e-6, weight_decay=0.1)
    plain.backward(samples(0))
    client.backward(samples(0))
    plain.step(adam)
    client.step(adam)
    for p in plain.parameters:
        p.grad = torch.zeros_like(p)
    plain.step(adam)
    stats = client.step(adam)
    assert stats.grad_norm == 0
    assert stats.update_norm > 0
    np.testing.assert_allclose(
        client.forward(samples(1)).logprobs[0], plain.backward(samples(1))[0][0], atol=1e-4
    )


def test_norms_of_millions_are_exact() -> None:
    flat = torch.randn(8_000_003, generator=torch.Generator().manual_seed(0)).square()
    assert adamw.norm(flat) == pytest.approx(float(flat.double().norm()), rel=1e-6)


def test_update_norm_is_the_length_of_the_step(client: Client) -> None:
    client.create()
    client.backward(samples(0))
    before = client.weights.clone()
    stats = client.step(FAST)
    assert stats.step == 1
    assert stats.learning_rate == FAST.learning_rate
    assert stats.update_norm == pytest.approx(float((client.weights - before).norm()))
