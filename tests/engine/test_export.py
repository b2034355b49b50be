"""A checkpoint merged into its base model computes what the two compute together."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from jupyter_tinker.engine import export, merge
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire.ops import AdamParams, OpError

from .reference import Client, load_peft, samples

Models = Callable[[str], Path]


def train_and_save(base: Path, folder: Path, **lora: Any) -> Path:
    """A checkpoint whose adapter changes every prediction."""
    client = Client(Engine(), base)
    client.create(rank=3, **lora)
    for seed in range(2):
        client.backward(samples(seed))
        client.step(AdamParams(learning_rate=5e-2, eps=1e-8))
    client.save(folder)
    return folder


def logits(model: torch.nn.Module, seed: int = 5) -> torch.Tensor:
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([s.tokens])).logits[0] for s in samples(seed)]
    return torch.cat(rows)


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def load_whole(folder: Path, **options: Any) -> torch.nn.Module:
    """The model in `folder`, all of whose weights come from its files."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not any(report.values()), report
    return model.eval()


@pytest.mark.parametrize("kind", ["untied", "tied", "qwen2", "gemma2", "cohere", "gpt_neox"])
@pytest.mark.parametrize("train_unembed", [True, False])
def test_the_merged_model_computes_what_base_and_adapter_do(
    models: Models, tmp_path: Path, kind: str, train_unembed: bool
) -> None:
    base = models(kind)
    checkpoint = train_and_save(base, tmp_path / "checkpoint", train_unembed=train_unembed)
    export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", None)
    expected = logits(load_peft(base, checkpoint).eval())
    merged = load_whole(tmp_path / "merged")
    assert relative_difference(expected, logits(merged)) < 1e-5
    assert relative_difference(expected, logits(load_whole(base))) > 0.1
    was_tied = load_whole(base).config.tie_word_embeddings
    assert merged.config.tie_word_embeddings == (was_tied and not train_unembed)


def test_untying_leaves_the_embedding_as_it_was(models: Models, tmp_path: Path) -> None:
    base = models("tied")
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", None)
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(after) - set(before) == {"lm_head.weight"}
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    assert json.loads((checkpoint / "jupyter_tinker.json").read_text())["merging_unties"] is True


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_summed_in_float32_and_rounded_once(
    models: Models, tmp_path: Path, dtype: str
) -> None:
    base = models("tied")
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    for asked in ("float32", dtype):
        export.write_merged(checkpoint, "tiny", base, tmp_path / asked, asked)
    exact = load_file(tmp_path / "float32" / "model.safetensors")
    rounded = load_file(tmp_path / dtype / "model.safetensors")
    assert exact.keys() == rounded.keys()
    for name, value in exact.items():
        assert torch.equal(value.to(merge.DTYPES[dtype]), rounded[name]), name
    assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_without_a_word_it_is_what_the_base_is(models: Models, tmp_path: Path, dtype: str) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(
        models("untied"), dtype=merge.DTYPES[dtype]
    ).save_pretrained(base)
    checkpoint = train_and_save(base, tmp_path / "checkpoint", train_mlp=False)
    export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", None)
    before = load_file(base / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert {value.dtype for value in after.values()} == {merge.DTYPES[dtype]}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if "self_attn" in n or n == "lm_head.weight"}


def test_what_stands_beside_the_weights_is_the_bases(models: Models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(models("untied")).save_pretrained(base)
    config = json.loads((base / "config.json").read_text()) | {"a_note": "of the base's author"}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text('{"temperature": 0.6}')
    (base / "tokenizer.json").write_text("{}")
    (base / "jupyter_tinker.json").write_text("{}")
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", None)
    assert {file.name for file in (tmp_path / "merged").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    for name in ("generation_config.json", "tokenizer.json"):
        assert (tmp_path / "merged" / name).read_text() == (base / name).read_text()
    after = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert after == config | {"tie_word_embeddings": False}


def test_what_overflows_is_refused(models: Models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(models("untied"))
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e6
    model.save_pretrained(base)
    checkpoint = train_and_save(models("untied"), tmp_path / "checkpoint")
    with pytest.raises(OpError, match=r"layers\.1\.mlp\.up_proj.* does not fit into float16"):
        export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", "float16")
    assert not (tmp_path / "merged").exists()


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        config = json.loads((base / "config.json").read_text()) | changes
        (base / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("damage", "dtype", "sentence"),
    [
        (_config(quantization_config={"quant_method": "fp8"}), None, "is quantized"),
        (_config(rms_norm_eps=0.5), None, "whose configuration differs"),
        (_config(dtype="float64"), None, "stored in float64"),
        (lambda base: (base / "config.json").unlink(), None, "no base model at"),
        (lambda base: (base / "model.safetensors").unlink(), None, "could not be loaded"),
        (lambda base: None, "int4", "no dtype 'int4'; choose one of float32, bfloat16, float16"),
    ],
)
def test_what_cannot_be_merged_is_refused(
    models: Models,
    tmp_path: Path,
    damage: Callable[[Path], None],
    dtype: str | None,
    sentence: str,
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(models("untied")).save_pretrained(base)
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    damage(base)
    with pytest.raises(OpError, match=sentence):
        export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", dtype)


def test_a_replacement_of_another_process_is_left_alone(models: Models, tmp_path: Path) -> None:
    base = models("untied")
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    aside = checkpoint.with_name(".checkpoint.replaced")
    checkpoint.rename(aside)
    with pytest.raises(OpError, match="there is no checkpoint"):
        export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", None)
    assert aside.exists()
    assert not checkpoint.exists()


def test_the_program_ends_with_one_line(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train_and_save(models("untied"), tmp_path / "checkpoint")
    out = str(tmp_path / "out")
    with warnings.catch_warnings():
        export.main(["merged", str(checkpoint), "tiny", str(models("untied")), out])
        told = [line.split(" ", 1) for line in capsys.readouterr().out.splitlines()]
        assert [float(fraction) for fraction, _ in told][-1] == 1.0
        for base, sentence in (("tied", "whose configuration differs"), ("none", "no base model")):
            path = models(base) if base == "tied" else tmp_path / "none"
            with pytest.raises(SystemExit, match=sentence) as ended:
                export.main(["merged", str(checkpoint), "tiny", str(path), f"{out}2"])
            assert "\n" not in str(ended.value)


@pytest.mark.slow
def test_smollm2(smollm2: Path, tmp_path: Path) -> None:
    checkpoint = train_and_save(smollm2, tmp_path / "checkpoint")
    export.write_merged(checkpoint, "smollm2-135m", smollm2, tmp_path / "merged", None)
    expected = logits(load_peft(smollm2, checkpoint).eval())
    assert relative_difference(expected, logits(load_whole(tmp_path / "merged"))) < 1e-5

    export.write_gguf(checkpoint, "smollm2-135m", smollm2, tmp_path / "m.gguf", "float32")
    model = load_whole(tmp_path, gguf_file="m.gguf")
    assert relative_difference(expected, logits(model)) < 1e-5
    ours = AutoTokenizer.from_pretrained(smollm2)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    text = "<|im_start|>user\nnaïve café, 你好 🎉\n\n  x = one;<|im_end|>\n"
    assert theirs(text).input_ids == ours(text).input_ids
    assert theirs.chat_template == ours.chat_template
