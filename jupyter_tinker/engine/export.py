"""Writes a checkpoint and its base model as one model: a Hugging Face folder, or a GGUF file.

    python -m jupyter_tinker.engine.export merged CHECKPOINT BASE_NAME BASE_PATH OUT [--dtype D]

OUT is written in place: who wants it whole or not at all writes beside it and renames, as
`jupyter tinker export` does. Progress goes to standard output, in lines: a fraction between 0 and
1, a space, the stage in words. What went wrong is the last line of standard error.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..wire.ops import OpError
from . import gguf_file, merge
from .progress import Report

# What a tokenizer and `generate` read beside the weights. The base's own files: nothing that saves
# them anew keeps every field.
_COMPANIONS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


def write_merged(checkpoint: Path, name: str, base: Path, out: Path, dtype: str | None) -> None:
    """Write the folder `out`, which `AutoModelForCausalLM.from_pretrained` loads."""
    dtype = dtype or merge.own_dtype(base)
    if dtype not in merge.DTYPES:
        raise OpError(f"there is no dtype {dtype!r}; choose one of {', '.join(merge.DTYPES)}")
    merged = merge.load(checkpoint, name, base, _loading(name))
    tied = merged.tied
    model = merged.fold(dtype, lambda done: _report(0.4 + 0.3 * done, "Merging the adapter"))
    _report(0.7, f"Writing {dtype} safetensors")
    _save(model, out)
    _write_config(base, out, dtype, tied=tied)
    for companion in _COMPANIONS:
        if (base / companion).is_file():
            shutil.copyfile(base / companion, out / companion)
    _report(1.0, "Written")


def write_gguf(checkpoint: Path, name: str, base: Path, out: Path, dtype: str | None) -> None:
    """Write the file `out`, which llama.cpp and its relatives load."""
    dtype = dtype or merge.own_dtype(base)
    vocabulary = gguf_file.check(base, dtype)
    merged = merge.load(checkpoint, name, base, _loading(name))

    def tell(done: float) -> None:
        _report(0.4 + 0.6 * done, f"Writing {dtype} GGUF")

    gguf_file.write(merged, vocabulary, out, name, dtype, tell)
    _report(1.0, "Written")


def _save(model: PreTrainedModel, out: Path) -> None:
    # The base's own generation_config.json is copied; some that are in use do not pass the checks
    # of whoever saves them.
    model.generation_config = GenerationConfig()
    model.save_pretrained(out, max_shard_size="5GB")
    (out / "generation_config.json").unlink(missing_ok=True)


def _write_config(base: Path, out: Path, dtype: str, *, tied: bool) -> None:
    """The base's config as it stands, but for what the merging changed."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config")
    for part in [config, *([text] if isinstance(text, dict) else [])]:
        part["torch_dtype" if "torch_dtype" in part else "dtype"] = dtype
        if not tied:
            part["tie_word_embeddings"] = False
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _loading(name: str) -> Report:
    return lambda p: _report(0.05 + 0.35 * p.done / (p.total or 1), f"Loading {name}")


def _report(fraction: float, text: str) -> None:
    print(f"{fraction:.2f} {text}", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m jupyter_tinker.engine.export", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("form", choices=["merged", "gguf"])
    parser.add_argument("checkpoint", type=Path, help="the folder of a checkpoint")
    parser.add_argument("base_name", help="what the base model is called")
    parser.add_argument("base_path", type=Path, help="the folder of the base model")
    parser.add_argument("out", type=Path, help="the folder or file to write")
    parser.add_argument("--dtype", help="of the weights; default: the base's own")
    a = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    form = {"merged": write_merged, "gguf": write_gguf}[a.form]
    try:
        with torch.no_grad():
            form(a.checkpoint, a.base_name, a.base_path, a.out, a.dtype)
    except OpError as error:
        sys.exit(_one_line(error.message))
    except MemoryError:
        sys.exit("there is too little memory to hold the base model; free some, or add swap space")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        sys.exit(_one_line(f"{a.out.name} could not be written: {reason}"))
    except Exception as error:  # what libraries raise on a model they do not know is open-ended
        sys.exit(_one_line(f"{a.base_name} could not be exported: {error or type(error).__name__}"))


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    main()
