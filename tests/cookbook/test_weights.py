"""The cookbook's tools for weights, on our checkpoints: the right weights, or a refusal."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.cookbook.conftest import PYTHON
from tests.engine.reference import VOCAB, load_peft
from tests.engine.test_export import load_whole, logits, relative_difference, train_and_save

pytestmark = pytest.mark.cookbook


def cookbook(function: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Call a function of `tinker_cookbook.weights` in the cookbook's own environment."""
    arguments = {name: str(value) for name, value in options.items()}
    code = f"from tinker_cookbook import weights; weights.{function}(**{arguments!r})"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, timeout=300)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=request.param,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("train_unembed", [True, False])
def test_build_hf_model(base: Path, tmp_path: Path, train_unembed: bool) -> None:
    checkpoint = train_and_save(base, tmp_path / "checkpoint", train_unembed=train_unembed)
    places = {"base_model": base, "adapter_path": checkpoint, "output_path": tmp_path / "out"}
    done = cookbook("build_hf_model", dtype="float32", **places)
    if train_unembed and load_whole(base).config.tie_word_embeddings:
        # Its files have no output layer to merge into, and the cookbook says so.
        assert done.returncode == 1
        assert "'lm_head.weight' which does not exist in the model" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    expected = logits(load_peft(base, checkpoint).eval())
    assert relative_difference(expected, logits(load_whole(tmp_path / "out"))) < 1e-5


@pytest.mark.parametrize("train_unembed", [True, False])
def test_build_lora_adapter(base: Path, tmp_path: Path, train_unembed: bool) -> None:
    checkpoint = train_and_save(base, tmp_path / "checkpoint", train_unembed=train_unembed)
    places = {"base_model": base, "adapter_path": checkpoint, "output_path": tmp_path / "out"}
    done = cookbook("build_lora_adapter", **places)
    assert done.returncode == 0, done.stderr
    expected = logits(load_peft(base, checkpoint).eval())
    assert torch.equal(expected, logits(load_peft(base, tmp_path / "out").eval()))
