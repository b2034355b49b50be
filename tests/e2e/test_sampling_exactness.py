"""Sampling SmolLM2 through the SDK: what it says of tokens is what training computes for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker
from tinker import types
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ADAM = types.AdamParams(learning_rate=5e-4, beta1=0.9, beta2=0.95, eps=1e-8)
TEXT = "Rain fell on the town all night, and by the morning every street had become a small river."


@pytest.fixture(scope="module")
def service(start, smollm2: Path) -> Iterator[tinker.ServiceClient]:
    server: Server = start(models={"smollm2-135m": smollm2})
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def trained(
    service: tinker.ServiceClient, tokenizer: PreTrainedTokenizerBase
) -> tinker.TrainingClient:
    """A run three steps away from its base."""
    client = service.create_lora_training_client(base_model="smollm2-135m", rank=16, seed=2)
    client = client.result()
    ids = tokenizer.encode(TEXT)
    for _ in range(3):
        client.forward_backward([weighted(ids, np.ones(len(ids) - 1))], "cross_entropy")
        client.optim_step(ADAM).result()
    return client


def weighted(ids: list[int], weights: np.ndarray) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1]),
        loss_fn_inputs={"target_tokens": ids[1:], "weights": weights.astype(np.float32)},
    )


def forward(client: tinker.TrainingClient, ids: list[int]) -> np.ndarray:
    """Log-probabilities of ids[1:], as training computes them."""
    output = client.forward([weighted(ids, np.zeros(len(ids) - 1))], "cross_entropy").result()
    return np.asarray(output.loss_fn_outputs[0]["logprobs"].data)


def sample(
    sampler: tinker.SamplingClient, ids: list[int], count: int, **fields: object
) -> list[types.SampledSequence]:
    params = types.SamplingParams(**{"max_tokens": 24, "seed": 7, "stop": [], **fields})
    prompt = types.ModelInput.from_ints(ids)
    return list(sampler.sample(prompt, count, params).result().sequences)


def test_prompt_logprobs_are_those_of_training(
    trained: tinker.TrainingClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    sampler = trained.save_weights_and_get_sampling_client().result()
    ids = tokenizer.encode(TEXT + " Nobody was surprised.")
    scores = sampler.compute_logprobs(types.ModelInput.from_ints(ids)).result()
    assert scores[0] is None
    np.testing.assert_allclose(scores[1:], forward(trained, ids), atol=1e-4)


def test_sampled_logprobs_are_those_of_training_and_the_ratio_is_one(
    trained: tinker.TrainingClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    sampler = trained.save_weights_and_get_sampling_client().result()
    ids = tokenizer.encode("Once upon a time")
    sequences = sample(sampler, ids, 4)
    assert len({tuple(sequence.tokens) for sequence in sequences}) == 4
    data = []
    for sequence in sequences:
        full = ids + list(sequence.tokens)
        scored = forward(trained, full)[len(ids) - 1 :]
        np.testing.assert_allclose(sequence.logprobs, scored, atol=1e-4)
        before = np.zeros(len(ids) - 1, np.float32)
        data.append(
            types.Datum(
                model_input=types.ModelInput.from_ints(full[:-1]),
                loss_fn_inputs={
                    "target_tokens": full[1:],
                    "logprobs": np.concatenate([before, np.float32(sequence.logprobs)]),
                    "advantages": np.concatenate([before, np.ones(len(scored), np.float32)]),
                },
            )
        )
    sampled = sum(len(sequence.tokens) for sequence in sequences)
    result = trained.forward(data, "importance_sampling").result()
    # The loss is minus the sum of the ratios.
    assert result.metrics["loss:sum"] / sampled == pytest.approx(-1, abs=1e-3)


def test_logprobs_are_of_the_tempered_distribution(
    trained: tinker.TrainingClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Between two tokens of one position, log-probabilities differ by logits over temperature."""
    sampler = trained.save_weights_and_get_sampling_client().result()
    ids = tokenizer.encode("My favourite colour is")
    seen: dict[float, dict[int, float]] = {}
    for temperature in (0.5, 1.0, 2.0):
        first = sample(sampler, ids, 200, max_tokens=1, temperature=temperature)
        seen[temperature] = {s.tokens[0]: s.logprobs[0] for s in first}
    for temperature in (0.5, 2.0):
        common = sorted(seen[1.0].keys() & seen[temperature].keys())
        assert len(common) > 3
        plain = np.array([seen[1.0][token] for token in common])
        tempered = np.array([seen[temperature][token] for token in common])
        np.testing.assert_allclose(np.diff(tempered), np.diff(plain) / temperature, atol=1e-3)


def test_a_run_that_is_not_yet_trained_samples_as_its_base_does(
    service: tinker.ServiceClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    fresh = service.create_lora_training_client(base_model="smollm2-135m", rank=4, seed=9).result()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    base = service.create_sampling_client(base_model="smollm2-135m").result()
    run = fresh.save_weights_and_get_sampling_client().result()
    answers = [sample(sampler, ids, 1, temperature=0.0, stop=None)[0] for sampler in (base, run)]
    assert answers[0].tokens == answers[1].tokens
    assert "Paris" in tokenizer.decode(answers[0].tokens)
    assert answers[0].stop_reason == "stop"


def test_a_seed_means_the_same_among_other_requests(
    trained: tinker.TrainingClient, tokenizer: PreTrainedTokenizerBase
) -> None:
    sampler = trained.save_weights_and_get_sampling_client().result()
    ids = tokenizer.encode("The old lighthouse keeper")
    alone = sample(sampler, ids, 3)
    params = types.SamplingParams(max_tokens=30)
    others = [
        sampler.sample(types.ModelInput.from_ints(ids[: 1 + n % 4]), 2, params) for n in range(6)
    ]
    among = sample(sampler, ids, 3)
    for other in others:
        other.result()
    assert [s.tokens for s in among] == [s.tokens for s in alone]
    for one, again in zip(alone, among, strict=True):
        np.testing.assert_allclose(one.logprobs, again.logprobs, atol=1e-5)
