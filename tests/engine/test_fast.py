"""Training without padding and autograd, held against transformers and PEFT."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_tinker.engine import losses, products, train
from jupyter_tinker.engine.adamw import AdamW
from jupyter_tinker.engine.adapter import Adapter
from jupyter_tinker.engine.base_model import BaseModel
from jupyter_tinker.engine.batch import fill
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.fast import decoder, structure
from jupyter_tinker.engine.placement import Placement
from jupyter_tinker.engine.run import Run
from jupyter_tinker.engine.train import ForwardResult
from jupyter_tinker.wire.ops import AdamParams, EngineOptions, LoraSpec
from jupyter_tinker.wire.tensors import Batch, Datum

from .reference import VOCAB, Client, samples

FAMILIES = ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma"]
CPU = Placement("cpu", "float32", "sdpa", "for a test")


@dataclass(frozen=True)
class Case:
    """A model, an adapter and a batch."""

    family: str
    config: dict[str, Any]
    spec: LoraSpec
    lengths: list[int]
    loss: str
    microbatch_tokens: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups, key_heads, size = draw(st.tuples(*[st.integers(1, 3)] * 2, st.sampled_from([4, 8, 10])))
    family = draw(st.sampled_from(FAMILIES))
    config = {
        "hidden_size": groups * key_heads * draw(st.integers(3, 9)),
        "intermediate_size": draw(st.integers(3, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_key_value_heads": key_heads,
        "num_attention_heads": groups * key_heads,
        "head_dim": size,
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-2])),
    }
    if family == "Qwen2":  # whose heads share the hidden size
        config["hidden_size"] = groups * key_heads * size
        del config["head_dim"]
    if family == "Llama":
        config["attention_bias"], config["mlp_bias"] = draw(st.booleans()), draw(st.booleans())
    parts = draw(st.sampled_from([p for p in np.ndindex(2, 2, 2) if any(p)]))
    spec = LoraSpec(
        rank=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 99)),
        alpha=draw(st.sampled_from([1.0, 8.0, 32.0])),
        train_attn=bool(parts[0]),
        train_mlp=bool(parts[1]),
        train_unembed=bool(parts[2]),
    )
    return Case(
        family,
        config,
        spec,
        lengths=draw(st.lists(st.integers(1, 24), min_size=1, max_size=7)),
        loss=draw(st.sampled_from(sorted(losses.LOSSES))),
        microbatch_tokens=draw(st.sampled_from([1, 30, 1000])),
        seed=draw(st.integers(0, 999)),
    )


def made_model(family: str, seed: int = 0, **config: Any) -> transformers.PreTrainedModel:
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = getattr(transformers, f"{family}Config")(**shape)
        model = getattr(transformers, f"{family}ForCausalLM")(made)
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:  # which are the same for all, when they are new
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval().requires_grad_(False)


def made_base(model: transformers.PreTrainedModel, placement: Placement = CPU) -> BaseModel:
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        base = BaseModel("tiny", Path(folder), model, placement)
    base.decoder = structure.find(base)
    return base


def made_run(base: BaseModel, spec: LoraSpec, seed: int = 0) -> Run:
    """With B's that are not zero."""
    adapter = Adapter(base, spec)
    generator = torch.Generator().manual_seed(seed)
    for key, view in adapter.views.items():
        if ".lora_B." in key:
            view.copy_(torch.randn(view.shape, generator=generator) * 0.05)
    return Run("run", adapter, AdamW(adapter.weights))


def batch(lengths: Sequence[int], loss: str, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    data = []
    for length in lengths:
        inputs = {"target_tokens": rng.integers(0, VOCAB, length)}
        signed = rng.normal(size=length) * (rng.random(length) < 0.7)
        if loss == "cross_entropy":
            inputs["weights"] = signed.astype(np.float32)
        else:
            inputs["advantages"] = signed.astype(np.float32)
            inputs["logprobs"] = -rng.random(length).astype(np.float32) * 4
        if loss == "gspo":
            inputs["sequence_ratio_mask"] = np.ones(length, np.float32)
        data.append(Datum(rng.integers(0, VOCAB, length), inputs))
    return Batch("m", 1, loss, {}, False, data)


def computed(run: Run, request: Batch, tokens: int) -> tuple[ForwardResult, torch.Tensor]:
    """The result and the gradient."""
    run.zero_grad()
    result = train.forward_backward(run, losses.LOSSES[request.loss_fn], request, tokens)
    return result, run.adapter.gradients.clone()


def assert_same(run: Run, request: Batch, tokens: int = 1000) -> None:
    """With the decoder as without."""
    base = run.base
    fast = base.decoder
    assert fast is not None
    got, gradient = computed(run, request, tokens)
    base.decoder = None
    expected, wanted = computed(run, request, tokens)
    base.decoder = fast
    for one, other in zip(got.outputs, expected.outputs, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(one["logprobs"], other["logprobs"], atol=2e-4, rtol=1e-4)
    size = float(torch.linalg.vector_norm(wanted))
    assert float(torch.linalg.vector_norm(gradient - wanted)) <= 2e-4 * size + 1e-7
    assert got.loss_sum == pytest.approx(expected.loss_sum, rel=1e-3, abs=1e-3)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 90))
def test_microbatches_hold_every_sequence_once_within_their_bound(
    lengths: list[int], most: int
) -> None:
    filled = fill(lengths, most)
    assert sorted(i for members in filled for i in members) == list(range(len(lengths)))
    assert all(len(m) == 1 or sum(lengths[i] for i in m) <= most for m in filled)


@pytest.mark.parametrize(("onednn", "mkl"), [(True, False), (True, True), (False, False)])
def test_products_are_what_they_say(
    onednn: bool, mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "onednn_multiplies", lambda dtype: onednn)
    monkeypatch.setattr(products, "_mkl_is_at_home", lambda: mkl)
    torch.manual_seed(0)
    x, y, weight, bias = (torch.randn(s) for s in ((7, 5), (7, 3), (3, 5), (3,)))
    plus = torch.randn(7, 3)
    exact = (x.double() @ weight.double().T + bias.double() + plus.double()).float()
    untouched = plus.clone()
    torch.testing.assert_close(products.linear(x, weight, bias, plus), exact)
    torch.testing.assert_close(products.linear(x, weight, plus=plus), exact - bias)
    assert torch.equal(plus, untouched)
    torch.testing.assert_close(products.linear_(plus.clone(), x, weight, bias), exact)
    torch.testing.assert_close(products.linear_(plus.clone(), x, weight), exact - bias)
    torch.testing.assert_close(products.linear(x, weight), x @ weight.T)
    torch.testing.assert_close(products.matmul(y, weight), y @ weight)
    torch.testing.assert_close(products.matmul(y, weight, x.clone()), y @ weight + x)
    into = torch.randn(3, 5)
    for own, one, other in ((into, y, x), (into.T.contiguous(), x, y)):
        wanted = own - 2.0 * (one.T @ other)
        torch.testing.assert_close(products.add_cross_(own, one, other, -2.0), wanted)
        torch.testing.assert_close(own, wanted)
    assert products.linear(x[:0], weight).shape == (0, 3)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_it_computes_what_the_reference_computes(case: Case) -> None:
    base = made_base(made_model(case.family, case.seed, **case.config))
    run = made_run(base, case.spec, case.seed)
    assert_same(run, batch(case.lengths, case.loss, case.seed), case.microbatch_tokens)


@pytest.mark.parametrize(
    ("names", "attention", "mlp"),
    [
        (["q_proj"], True, False),
        (["k_proj", "down_proj"], True, True),
        (["o_proj", "up_proj"], True, True),
        (["gate_proj"], False, True),
    ],
    ids=str,
)
def test_any_of_the_layers_can_be_adapted(names: list[str], attention: bool, mlp: bool) -> None:
    base = made_base(made_model("Llama", num_hidden_layers=3))
    chosen = [p for p in base.projections if p.path.rpartition(".")[2] in names]
    base.projections = [p for p in chosen if "layers.0." not in p.path]
    spec = LoraSpec(rank=2, seed=0, train_attn=attention, train_mlp=mlp, train_unembed=False)
    assert_same(made_run(base, spec), batch([7, 12, 12], "cross_entropy", 0))


def test_what_is_computed_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(made_base(made_model("Qwen3")), LoraSpec(rank=2, seed=0))
    request = batch([5, 30, 30], "cross_entropy", 0)
    kept = computed(run, request, 1000)
    monkeypatch.setattr(decoder, "_MOST_KEPT_TOKENS", 10)
    again = computed(run, request, 1000)
    assert torch.equal(kept[1], again[1])
    for one, other in zip(kept[0].outputs, again[0].outputs, strict=True):
        np.testing.assert_array_equal(one["logprobs"], other["logprobs"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_the_same_each_time_and_beside_other_runs(
    models: Callable[[str], Path], dtype: str
) -> None:
    def trained(busy: bool) -> torch.Tensor:
        client = Client(Engine(EngineOptions(dtype=dtype)), models("tied"))
        client.create()
        other = Client(client.engine, models("tied"), "other")
        for seed in range(3):
            if busy:
                if seed == 1:
                    other.create(rank=2)
                if seed:
                    other.backward(samples(seed + 9))
                    other.step()
            client.backward(samples(seed))
            client.step(AdamParams(learning_rate=1e-2))
        return client.weights

    alone = trained(busy=False)
    assert torch.equal(alone, trained(busy=False))
    assert torch.equal(alone, trained(busy=True))


def test_long_sequences_of_a_sliding_window_take_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = made_base(made_model("Mistral", sliding_window=8))
    assert base.decoder is not None
    run = made_run(base, LoraSpec(rank=2, seed=0))
    passes = []
    real = decoder.Decoder.forward

    def forward(*arguments: Any, **more: Any) -> decoder.Pass:
        passes.append(arguments)
        return real(*arguments, **more)

    monkeypatch.setattr(decoder.Decoder, "forward", forward)
    assert_same(run, batch([3, 8, 5], "cross_entropy", 0))
    assert len(passes) == 1
    assert_same(run, batch([3, 9, 5], "cross_entropy", 0))
    assert len(passes) == 1


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("Gemma2", {"head_dim": 8}),
        ("Cohere", {}),
        ("Olmo2", {}),
        # Of the same modules, which compute something else.
        ("Granite", {"residual_multiplier": 0.5}),
        ("SmolLM3", {"no_rope_layer_interval": 2}),
        ("Llama", {"hidden_act": "relu"}),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ],
    ids=str,
)
def test_other_structures_take_the_reference(
    family: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    base = made_base(made_model(family, **config))
    assert base.decoder is None
    assert "tiny trains by transformers and PEFT" in caplog.text
    run = made_run(base, LoraSpec(rank=2, seed=0))
    result, gradient = computed(run, batch([5, 9], "cross_entropy", 0), 1000)
    assert result.not_finite is None
    assert gradient.any()


@pytest.mark.parametrize("loss", ["cross_entropy", "ppo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_it_is_as_near_to_exact_numbers_as_the_reference(
    family: str, loss: str
) -> None:
    model = made_model(family, initializer_range=0.1).bfloat16()
    exact = made_run(made_base(copy.deepcopy(model).float()), LoraSpec(rank=4, seed=0))
    rough = made_run(made_base(model, replace(CPU, dtype="bfloat16")), LoraSpec(rank=4, seed=0))
    assert rough.base.decoder is not None
    request = batch([5, 30, 12], loss, 0)
    _, true = computed(exact, request, 1000)
    _, own = computed(rough, request, 1000)
    rough.base.decoder = None
    _, reference = computed(rough, request, 1000)
    size = torch.linalg.vector_norm(true)
    errors = [torch.linalg.vector_norm(found - true) / size for found in (own, reference)]
    assert errors[0] <= 1.5 * errors[1] <= 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_common_structures_are_known(family: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert made_base(made_model(family)).decoder is not None
    assert "tiny has Llama's structure" in caplog.text


def test_without_flash_attention_a_gpu_takes_the_reference(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    base = made_base(made_model("Llama", head_dim=12))
    assert base.decoder is not None
    monkeypatch.setattr(base, "device", torch.device("cuda"))
    assert structure.find(base) is None
    assert "there is no flash attention here for heads of 12 in torch.float32" in caplog.text


def test_it_follows_what_the_engine_is_asked_for(models: Callable[[str], Path]) -> None:
    for options, fast in (
        (EngineOptions(), True),
        (EngineOptions(attention="eager"), False),
        (EngineOptions(dtype="bfloat16"), True),
    ):
        client = Client(Engine(options), models("untied"))
        client.create()
        base = client.engine.runs["run"].base
        assert (base.decoder is not None) == fast
        assert client.backward(samples(0)).stats.not_finite is None
