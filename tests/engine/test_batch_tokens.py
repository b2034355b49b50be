"""What is shown of a batch's tokens is what the engine computed of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jupyter_tinker.server import hardest
from jupyter_tinker.server.hardest import Scored
from jupyter_tinker.wire import ops, tensors
from jupyter_tinker.wire import tinker_pb2 as pb

from .reference import Client, request, samples, tensor, text

POLICY = ["importance_sampling", "ppo", "cispo", "dro", "gspo"]


def shown(client: Client, body: bytes) -> tuple[list[Scored], ops.ForwardBackwardStats, pb.Message]:
    client.create()
    op = ops.ForwardBackward(run=client.run, body=body)
    stats, (answer,) = client.engine.handle(op)
    output = pb.ForwardBackwardOutput.FromString(answer)
    _, every = hardest.sequences(body, answer, 0)
    return list(every), ops.ForwardBackwardStats(**stats), output


def policy(seed: int) -> list[pb.Datum]:
    rng = np.random.default_rng(seed)
    data = []
    for sample in samples(seed, (9, 31, 4, 17)):
        count = len(sample.tokens)
        inside = np.arange(count) >= count // 3
        made = pb.Datum(model_input=[text(sample.tokens)])
        inputs = {
            "target_tokens": sample.targets,
            "logprobs": -rng.random(count).astype("<f4"),
            "advantages": (rng.normal(size=count) * inside).astype("<f4"),
            "sequence_ratio_mask": inside.astype("<f4"),
        }
        for name, array in inputs.items():
            made.loss_fn_inputs[name].CopyFrom(tensor(array))
        data.append(made)
    return data


@pytest.mark.parametrize("k", [0, 3])
def test_the_mean_over_sequences_is_the_loss_of_the_step(client: Client, k: int) -> None:
    drawn = samples(5, (9, 31, 4, 17), k=k)
    data = [replace(one, weights=np.abs(one.weights)) for one in drawn if one.weights is not None]
    body = request(data)
    every, stats, _ = shown(client, body)
    weights = [one.weights.sum(dtype=np.float64) for one in every]
    assert sum(weights) == pytest.approx(stats.weight_sum, rel=1e-6)
    assert stats.loss_sum is not None
    means = [one.loss_mean or 0.0 for one in every]
    assert np.average(means, weights=weights) == pytest.approx(
        stats.loss_sum / stats.weight_sum, rel=1e-5
    )
    for one in every:
        assert one.losses is not None
        assert one.logprobs is not None
        own = np.where(one.counts, -one.weights * one.logprobs, 0)
        np.testing.assert_allclose(one.losses, own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", POLICY)
def test_the_tokens_that_count_are_those_of_the_loss(client: Client, loss: str) -> None:
    body = request(policy(3), loss_fn=loss)
    every, stats, output = shown(client, body)
    assert sum(int(one.counts.sum()) for one in every) == stats.weight_sum
    total = sum(float(one.losses.sum(dtype=np.float64)) for one in every if one.losses is not None)
    assert total == pytest.approx(stats.loss_sum, rel=1e-6)
    told = tensors.decode_output(output.SerializeToString())
    for one, own in zip(every, told, strict=True):
        assert one.logprobs is not None
        known = ~np.isnan(one.logprobs)
        assert known[one.counts].all()
        np.testing.assert_array_equal(one.logprobs[known], own["logprobs"][known])
        assert one.sampled is not None
