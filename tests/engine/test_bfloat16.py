"""Base models in bfloat16: what their rounding may not take away, and who gets them on the CPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from jupyter_tinker.engine import packed, placement, products
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.fast.lora import Linear, Lora, Pair
from jupyter_tinker.engine.joined import Joined
from jupyter_tinker.engine.placement import Machine, choose
from jupyter_tinker.wire.ops import EngineOptions

from .reference import Client, samples
from .test_fast import CPU, made_base, made_model
from .test_steps import both, generated

ROUNDED = replace(CPU, dtype="bfloat16")
CAPABLE = Machine(cpu_bfloat16=True)
AUTO, EXACT, ROUGH = (EngineOptions(dtype=dtype) for dtype in ("auto", "float32", "bfloat16"))

_NO_ONEDNN = pytest.mark.skipif(
    not products.onednn_multiplies(torch.bfloat16), reason="no oneDNN for bfloat16 here"
)
_NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


@pytest.fixture(params=[pytest.param("cpu", marks=_NO_ONEDNN), pytest.param("cuda", marks=_NO_GPU)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where new tensors are."""
    torch.manual_seed(0)
    with torch.device(request.param) as chosen:
        yield chosen


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def layer(device: torch.device, request: pytest.FixtureRequest) -> nn.Linear:
    made = nn.Linear(64, 96, bias=request.param).bfloat16().requires_grad_(False)
    made.weight.normal_()
    return made


def exactly(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    y = x.double() @ layer.weight.double().T
    return y if layer.bias is None else y + layer.bias.double()


def small_pair(layer: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds to each output a thousandth of its size, which is a fifth of the least that rounding
    leaves of it."""
    a = torch.randn(4, layer.in_features).bfloat16()
    b = 5e-4 * torch.randn(layer.out_features, 4).bfloat16()
    return a, b


def kept_share(got: torch.Tensor, without: torch.Tensor, added: torch.Tensor) -> float:
    """How much of what was `added` is in `got`, on average."""
    return float(((got.double() - without) * added).sum() / added.square().sum())


@pytest.mark.parametrize("residual", [False, True])
def test_the_small_part_of_an_adapter_is_not_rounded_away_in_training(
    layer: nn.Linear, residual: bool
) -> None:
    a, b = small_pair(layer)
    lora = Lora({"a": Pair(a, b, torch.zeros(a.shape), torch.zeros(b.shape))}, 1.0)
    x = torch.randn(500, 64).bfloat16()
    plus = torch.randn(500, 96).bfloat16() if residual else None
    got = Linear("a", layer).forward(x, lora, {}, None if plus is None else plus.clone())
    without = exactly(layer, x)
    if plus is not None:
        without += plus
    added = x.double() @ a.double().T @ b.double().T
    assert kept_share(got, without, added) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("pack", [False, True])
def test_nor_is_it_in_sampling(layer: nn.Linear, pack: bool) -> None:
    a, b = small_pair(layer)
    joined = Joined({"a": layer}, pack=pack)
    joined.adapter = joined.low_rank({"a.lora_A.weight": a, "a.lora_B.weight": b}, 1.0)
    x = torch.randn(500, 64).bfloat16()
    without = exactly(layer, x)
    added = x.double() @ a.double().T @ b.double().T
    assert kept_share(joined(x), without, added) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("pack", [False, True])
def test_logits_are_not_rounded(layer: nn.Linear, pack: bool) -> None:
    x = torch.randn(50, 64).bfloat16()
    exact = exactly(layer, x)
    linear = packed.Linear(layer.weight, layer.bias, pack=pack, wide=True)
    for got in (products.wide(x, layer.weight, layer.bias), linear(x)):
        assert got.dtype == torch.float32
        assert (got - exact).abs().max() <= 2**-15 * exact.abs().max()


def test_beyond_a_sliding_window_transformers_modules_go_on() -> None:
    joined, reference = both(made_base(made_model("Mistral", sliding_window=8).bfloat16(), ROUNDED))
    got, wanted = (generated(model, None, 2).float() for model in (joined, reference))
    assert (got - wanted).abs().max() <= 0.05 * wanted.abs().max()


def test_keys_are_kept_in_the_type_that_attention_reads_them_in() -> None:
    joined, reference = both(made_base(made_model("Llama").bfloat16(), ROUNDED))
    assert joined.new_store().dtype == torch.float32
    assert reference.new_store().dtype == torch.bfloat16
    assert joined.bytes_per_token == 2 * reference.bytes_per_token


@pytest.mark.parametrize(
    ("options", "machine", "stored", "wanted"),
    [
        (AUTO, CAPABLE, "bfloat16", "bfloat16"),
        (AUTO, CAPABLE, "float32", "float32"),
        (AUTO, CAPABLE, "float16", "float32"),
        (AUTO, Machine(), "bfloat16", "float32"),
        (EXACT, CAPABLE, "bfloat16", "float32"),
        (ROUGH, Machine(), "float32", "bfloat16"),
        (AUTO, Machine(cuda_devices=1, cuda_bfloat16=True), "float32", "bfloat16"),
        (AUTO, replace(CAPABLE, cuda_devices=1), "bfloat16", "float32"),
        (replace(AUTO, device="cpu"), replace(CAPABLE, cuda_devices=1), "bfloat16", "bfloat16"),
    ],
)
def test_which_type_a_model_is_computed_in(
    options: EngineOptions, machine: Machine, stored: str, wanted: str
) -> None:
    chosen = choose(options, machine)
    assert chosen.of_model(stored).dtype == wanted
    assert ("models stored in it" in chosen.reason) == chosen.as_stored


@pytest.mark.parametrize("said", [True, False], ids=["in config.json", "by the weights alone"])
def test_a_model_that_is_stored_in_bfloat16_stays_so_where_that_is_faster(
    models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    monkeypatch.setattr(placement.Machine, "detect", lambda: CAPABLE)
    folder = tmp_path / "stored"
    folder.mkdir()
    config = json.loads((models("untied") / "config.json").read_text())
    config.pop("dtype")
    (folder / "config.json").write_text(
        json.dumps(config | ({"dtype": "bfloat16"} if said else {}))
    )
    weights = load_file(models("untied") / "model.safetensors")
    save_file(
        {name: weight.bfloat16() for name, weight in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    for path, dtype in ((folder, torch.bfloat16), (models("untied"), torch.float32)):
        client = Client(Engine(), path)
        client.create()
        base = client.engine.runs["run"].base
        assert {parameter.dtype for parameter in base.model.parameters()} == {dtype}
        assert base.placement.torch_dtype == dtype
        assert base.decoder is not None
        assert client.backward(samples(0)).stats.not_finite is None
        assert client.weights.dtype == torch.float32
