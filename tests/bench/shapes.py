"""Models of any size with random weights, which compute as fast as trained ones, and trained ones
stored in another type."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.bench import device

_OF_LLAMA_3 = {"vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "1B": {
        **_OF_LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "tie_word_embeddings": True,
    },
    "8B": {
        **_OF_LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "tie_word_embeddings": False,
    },
}


@contextmanager
def made(shape: str, tokenizer: Path) -> Iterator[Path]:
    """A model's folder, with the tokenizer of the one in `tokenizer`; gone with the block."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192)
    with TemporaryDirectory(prefix="tinker-bench-") as folder:
        torch.manual_seed(0)
        with device.DEVICE:
            model = AutoModelForCausalLM.from_config(config, dtype=device.dtype())
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer / name, folder)
        yield Path(folder)


@contextmanager
def stored(model: Path) -> Iterator[Path]:
    """A copy of a model in the type that was asked for; gone with the block."""
    dtype = device.dtype()
    with TemporaryDirectory(prefix="tinker-bench-") as folder:
        copy = Path(shutil.copytree(model, Path(folder, model.name)))
        for file in copy.glob("*.safetensors"):
            weights = {name: weight.to(dtype) for name, weight in load_file(file).items()}
            save_file(weights, file, {"format": "pt"})
        config = json.loads((copy / "config.json").read_text())
        config["dtype"] = str(dtype).removeprefix("torch.")
        (copy / "config.json").write_text(json.dumps(config))
        yield copy
