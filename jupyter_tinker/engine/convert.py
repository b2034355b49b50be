"""Turns a GGUF file into a folder in Hugging Face layout: safetensors, config, tokenizer.

    python -m jupyter_tinker.engine.convert MODEL.gguf OUT_DIR

OUT_DIR is written in place: who wants it whole or not at all converts into a temporary folder and
renames that (`jupyter tinker pull` does). Progress goes to standard output, one line a stage:
a fraction between 0 and 1, a space, a text.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

_TOKEN_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def convert(gguf_file: Path, out_dir: Path) -> None:
    """Write `gguf_file` to `out_dir` as a causal language model that transformers can load."""
    _report(0.0, "Reading the GGUF file")
    metadata = _metadata(gguf_file)
    out_dir.mkdir(parents=True, exist_ok=True)

    _report(0.1, "Building the tokenizer")
    tokenizer = _tokenizer(gguf_file, metadata)

    _report(0.5, "Reading the weights")
    model = _model(gguf_file)
    for name, key in _TOKEN_IDS.items():
        if key in metadata:
            setattr(model.config, f"{name}_id", int(metadata[key]))
    tokenizer.model_max_length = model.config.max_position_embeddings

    _report(0.8, "Writing safetensors")
    tokenizer.save_pretrained(out_dir)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(out_dir)
    _report(1.0, "Converted")


def _metadata(gguf_file: Path) -> dict[str, Any]:
    """The file's short fields; the token lists are the tokenizer's business."""
    fields = GGUFReader(gguf_file).fields
    wanted = [*_TOKEN_IDS.values(), "tokenizer.ggml.pre", "tokenizer.chat_template"]
    return {key: fields[key].contents() for key in wanted if key in fields}


def _model(gguf_file: Path) -> Any:
    # A block's weights are scale * integer + minimum, in 16-bit scales: products that neither
    # bfloat16 nor float16 hold. float32 keeps them all, at twice the disk; the engine rounds at
    # load where it computes in less.
    model = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    )
    # The weights are plain now; what still says "quantized" would make the saving refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _tokenizer(gguf_file: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    backend: Tokenizer = loaded.backend_tokenizer
    if metadata.get("tokenizer.ggml.pre") == "smollm":
        # transformers leaves out the digit splitting that this name stands for.
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        )
    # Built anew, so that the special tokens are those that the file names, and nothing else.
    special = {
        name: backend.id_to_token(int(metadata[key]))
        for name, key in _TOKEN_IDS.items()
        if key in metadata
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def _report(fraction: float, text: str) -> None:
    print(f"{fraction:.2f} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jupyter_tinker.engine.convert", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("gguf_file", type=Path, help="the model, a .gguf file")
    parser.add_argument("out_dir", type=Path, help="the folder to write")
    arguments = parser.parse_args()
    convert(arguments.gguf_file, arguments.out_dir)


if __name__ == "__main__":
    main()
