"""Runs and data of the tests of losses."""

from __future__ import annotations

import numpy as np
import tinker
from tinker import types

ADAM = types.AdamParams(learning_rate=5e-3, beta1=0.9, beta2=0.95, eps=1e-8)


def make(service: tinker.ServiceClient) -> tinker.TrainingClient:
    """A run whose weights are the same for everyone who asks."""
    return service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()


def rollout(draw: np.random.Generator, length: int) -> types.Datum:
    """A prompt and a sample, with everything that any of the policy losses reads."""
    ids = draw.integers(5, 384, length + 1)
    inside = np.arange(length) >= length // 3
    arrays = {
        "logprobs": np.where(inside, -6 + draw.normal(size=length) * 0.3, 0),
        "advantages": np.where(inside, draw.normal(size=length), 0),
        "sequence_ratio_mask": inside,
    }
    return types.Datum(
        model_input=types.ModelInput.from_ints(ids[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": ids[1:].tolist(),
            **{key: array.astype(np.float32).tolist() for key, array in arrays.items()},
        },
    )


def rollouts(seed: int, count: int = 4) -> list[types.Datum]:
    draw = np.random.default_rng(seed)
    return [rollout(draw, int(length)) for length in draw.integers(6, 30, count)]
