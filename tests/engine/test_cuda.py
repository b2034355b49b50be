"""On a GPU: the kernels and recordings that nothing else has, held against exact numbers."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from jupyter_tinker.engine import kv_cache
from jupyter_tinker.engine.base_model import BaseModel
from jupyter_tinker.engine.fast.recorder import Recorder
from jupyter_tinker.engine.inference import InferenceModel
from jupyter_tinker.engine.placement import Placement
from jupyter_tinker.engine.run import Run
from jupyter_tinker.wire.ops import LoraSpec

from .test_fast import FAMILIES, batch, computed, made_base, made_model, made_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

_GPU = Placement("cuda", "bfloat16", "sdpa", "for a test")
_SPEC = LoraSpec(rank=4, seed=0, alpha=8.0)
_SHAPE = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1, "head_dim": 16}


def made(family: str, *, recorded: bool = True) -> tuple[Run, Run]:
    """A run on the GPU in bfloat16, and one of the same numbers on the CPU in float32."""
    model = made_model(family, **_SHAPE).bfloat16()
    exact = made_base(copy.deepcopy(model).float())
    return made_run(on_gpu(model, recorded=recorded), _SPEC), made_run(exact, _SPEC)


def on_gpu(model: PreTrainedModel, *, recorded: bool) -> BaseModel:
    base = made_base(model.to("cuda"), _GPU)
    assert base.decoder is not None
    if recorded:
        base.recorder = Recorder.of(base.decoder, base.device)
        assert base.recorder is not None
    return base


@pytest.mark.parametrize("loss", ["cross_entropy", "ppo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_follows_exact_numbers(family: str, loss: str) -> None:
    run, exact = made(family)
    for seed, lengths in enumerate(([5, 9, 17], [5, 9, 17], [5, 9, 17], [31], [1, 1, 60])):
        request = batch(lengths, loss, seed)
        got, gradient = computed(run, request, 1000)
        wanted, true = computed(exact, request, 1000)
        for one, other in zip(got.outputs, wanted.outputs, strict=True):
            np.testing.assert_allclose(one["logprobs"], other["logprobs"], atol=0.15)
        error = torch.linalg.vector_norm(gradient.cpu() - true) / torch.linalg.vector_norm(true)
        assert error <= 0.05, (family, seed, float(error))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_recorded_is_what_was_computed(family: str) -> None:
    run, _ = made(family)
    unrecorded = made(family, recorded=False)[0]
    request, other = batch([5, 9, 30], "cross_entropy", 0), batch([4, 8, 31], "cross_entropy", 1)
    first = computed(run, request, 1000)
    for _ in range(3):
        again = computed(run, request, 1000)
        assert torch.equal(first[1], again[1])
        assert first[0].loss_sum == again[0].loss_sum
        computed(run, other, 1000)
    plain = computed(unrecorded, request, 1000)
    torch.testing.assert_close(plain[1], first[1], rtol=2e-2, atol=2e-3)


def test_runs_of_like_adapters_share_recordings_and_nothing_else() -> None:
    run, _ = made("Llama")
    base = run.base
    second = made_run(base, replace(_SPEC, seed=5), seed=9)
    request = batch([5, 9, 30], "cross_entropy", 0)
    alone = [computed(r, request, 1000)[1] for r in (run, second)]
    assert not torch.equal(*alone)
    for _ in range(3):
        for one, wanted in zip((run, second), alone, strict=True):
            assert torch.equal(computed(one, request, 1000)[1], wanted)


def test_a_sampled_row_does_not_depend_on_the_others() -> None:
    run, _ = made("Llama")
    model = InferenceModel(run.base)
    weights = model.lay_out(run.adapter.views, run.lora.scale)

    def first_row(rows: int) -> torch.Tensor:
        store = model.new_store()
        store.reserve(rows, 64)
        found = []
        with torch.no_grad(), model.using(weights):
            sources = torch.zeros(rows, dtype=torch.long, device="cuda")
            model.prefill(torch.arange(9, device="cuda")[None], kv_cache.Prefill(store, 0, sources))
            for number in range(20):
                tokens = torch.arange(rows, device="cuda") * 3 + number
                positions = torch.full((rows,), 9 + number, device="cuda")
                positions[1:] += torch.arange(rows - 1, device="cuda") % 5
                hidden = model.step(tokens, kv_cache.Step(store, positions, 64))
                found.append(model.logits(hidden)[0].clone())
        return torch.stack(found)

    alone = first_row(1)
    assert all(torch.equal(first_row(rows), alone) for rows in (2, 7, 33, 256))
