"""A step of sampling by joined products, held against transformers' modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from jupyter_tinker.engine import kv_cache
from jupyter_tinker.engine.base_model import BaseModel
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.fast.step import Steps
from jupyter_tinker.engine.inference import InferenceModel, Weights
from jupyter_tinker.engine.joined import Joined
from jupyter_tinker.wire.ops import LoraSpec

from .reference import Client
from .test_fast import CPU, FAMILIES, Case, cases, made_base, made_model, made_run

PROMPT, STEPS = 5, 6


def generated(
    model: InferenceModel, weights: Weights | None, rows: int, together: bool = True
) -> torch.Tensor:
    """The hidden states (STEPS, rows, H) of rows that go on differently after one prompt."""
    vocab = model.base.limits.vocab_size
    tokens = torch.arange(rows * STEPS).view(STEPS, rows) * 7 % vocab
    prompt = torch.arange(PROMPT)[None] % vocab
    if not together:
        parts = [_steps(model, weights, prompt, tokens[:, i : i + 1]) for i in range(rows)]
        return torch.cat(parts, 1)
    return _steps(model, weights, prompt, tokens)


def _steps(
    model: InferenceModel, weights: Weights | None, prompt: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    rows = tokens.shape[1]
    store = model.new_store()
    store.reserve(rows, PROMPT + STEPS)
    found = []
    with torch.no_grad(), model.using(weights):
        model.prefill(prompt, kv_cache.Prefill(store, 0, torch.zeros(rows, dtype=torch.long)))
        for number, new in enumerate(tokens):
            positions = torch.full((rows,), PROMPT + number)
            columns = min(kv_cache.blocks(PROMPT + number + 1), store.columns)
            found.append(model.step(new, kv_cache.Step(store, positions, columns)))
    return torch.stack(found)


def both(base: BaseModel) -> tuple[InferenceModel, InferenceModel]:
    """With joined products, and with transformers' modules."""
    joined = InferenceModel(base)
    assert joined._steps is not None
    base.decoder, decoder = None, base.decoder
    reference = InferenceModel(base)
    base.decoder = decoder
    assert reference._steps is None
    return joined, reference


@settings(max_examples=40, deadline=None)
@given(cases())
def test_it_computes_what_transformers_modules_compute(case: Case) -> None:
    base = made_base(made_model(case.family, case.seed, **case.config))
    run = made_run(base, case.spec, case.seed)
    joined, reference = both(base)
    for views in (None, run.adapter.views):
        wanted, got = (
            generated(m, None if views is None else m.lay_out(views, run.lora.scale), 3)
            for m in (reference, joined)
        )
        assert (got - wanted).abs().max() <= 2e-4 * wanted.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_the_others(family: str, dtype: str) -> None:
    # Sizes that are whole vectors of the processor, as those of real models are.
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    if family == "Qwen2":
        del shape["head_dim"]
    made = made_model(family, **shape).to(getattr(torch, dtype))
    run = made_run(made_base(made, replace(CPU, dtype=dtype)), LoraSpec(rank=16, seed=0))
    model = InferenceModel(run.base)
    weights = model.lay_out(run.adapter.views, run.lora.scale)
    for used in (None, weights):
        alone = generated(model, used, 5, together=False)
        assert torch.equal(generated(model, used, 5), alone)


def test_beyond_a_sliding_window_transformers_modules_compute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kv_cache, "_COLUMNS", 4)
    joined, reference = both(made_base(made_model("Mistral", sliding_window=8)))
    columns = []
    real = Steps.forward

    def forward(own: Steps, tokens: torch.Tensor, access: kv_cache.Step) -> torch.Tensor:
        columns.append(access.columns)
        return real(own, tokens, access)

    monkeypatch.setattr(Steps, "forward", forward)
    got, wanted = generated(joined, None, 2), generated(reference, None, 2)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert columns == [8, 8, 8]  # and three more steps see twelve


def test_a_copy_of_an_adapter_stays_what_it_was() -> None:
    run = made_run(made_base(made_model("Llama")), LoraSpec(rank=2, seed=0))
    model = InferenceModel(run.base)
    weights = model.lay_out(run.adapter.views, run.lora.scale)
    before = generated(model, weights, 2)
    run.adapter.weights.zero_()
    assert torch.equal(generated(model, weights, 2), before)
    assert not torch.equal(generated(model, None, 2), before)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("adapted", [["a", "b"], ["b"], []], ids=str)
def test_joined_layers_are_those_layers(rows: int, pack: bool, adapted: list[str]) -> None:
    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 4), "b": nn.Linear(6, 3, bias=False)}
    views = {}
    for path in adapted:
        views[f"{path}.lora_A.weight"] = torch.randn(2, 6)
        views[f"{path}.lora_B.weight"] = torch.randn(layers[path].out_features, 2)
    joined = Joined(layers, pack=pack)
    joined.adapter = joined.low_rank(views, 0.5)
    assert (joined.adapter is None) == (not adapted)
    x, plus = torch.randn(rows, 6), torch.randn(rows, 7)
    wanted = []
    with torch.no_grad():
        for path, layer in layers.items():
            y = layer(x)
            if path in adapted:
                a, b = (views[f"{path}.lora_{side}.weight"] for side in "AB")
                y = y + x @ a.T @ b.T * 0.5
            wanted.append(y)
        torch.testing.assert_close(joined(x), torch.cat(wanted, 1))
        torch.testing.assert_close(joined(x, plus.clone()), torch.cat(wanted, 1) + plus)
        for part, own in zip((joined.part("a"), joined.part("b")), wanted, strict=True):
            torch.testing.assert_close(part(x), own)
            torch.testing.assert_close(part(x * 2 - x), own)


def test_parts_compute_what_they_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Joined({"a": nn.Linear(6, 4), "b": nn.Linear(6, 3)})
    calls = []
    real = joined.linear.__call__
    monkeypatch.setattr(joined, "linear", lambda x, plus: calls.append(x) or real(x, plus))
    one, other = torch.randn(2, 6), torch.randn(2, 6)
    with torch.no_grad():
        for x in (one, other):
            joined.part("a")(x)
            joined.part("b")(x)
        assert len(calls) == 2
        assert joined._made is None, "and keep it for one another only"
        joined.part("a")(other)
        joined.forget()
        joined.part("b")(other)
    assert len(calls) == 4


@pytest.mark.parametrize("adapters", [torch.float32, None])
def test_adapters_are_multiplied_in_the_type_that_training_has_them(
    adapters: torch.dtype | None,
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32, bias=False).bfloat16()
    joined = Joined({"a": layer}, adapters=adapters)
    views = {"a.lora_A.weight": torch.randn(4, 64), "a.lora_B.weight": torch.randn(32, 4)}
    joined.adapter = joined.low_rank(views, 1.0)
    x = torch.randn(200, 64).bfloat16()
    got = joined(x)
    assert got.dtype == torch.bfloat16
    low = x.float() @ views["a.lora_A.weight"].T
    exact = (layer(x).float() + low @ views["a.lora_B.weight"].T).bfloat16()
    assert torch.equal(got, exact) == (adapters is torch.float32)
    torch.testing.assert_close(got.float(), exact.float(), rtol=0.03, atol=0.5)


def test_the_engine_steps_by_joined_products_where_it_knows_the_structure(
    models: Callable[[str], Path],
) -> None:
    for kind, known in (("untied", True), ("qwen2", True), ("gpt_neox", False)):
        client = Client(Engine(), models(kind))
        client.create()
        base = client.engine.runs["run"].base
        model = client.engine.sampling._base(base).model
        assert (model._steps is not None) == known
