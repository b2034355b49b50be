"""The folder from which the cookbook's recipes find model names and data sets without a network.

`AutoTokenizer` and `load_dataset` prefer a folder of the name that they are given to the hub. So
the working directory of a recipe holds folders named like the hub's models and data sets.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

MODEL = "Qwen/Qwen3-8B-Base"  # a name that the cookbook knows; the server's alias for our model

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "config.json",
)
_FRUITS = (
    "apple",
    "banana",
    "cherry",
    "grape",
    "lemon",
    "mango",
    "melon",
    "olive",
    "peach",
    "plum",
)
_COLOURS = ("red", "green", "blue", "white", "black", "brown", "pink", "grey")


def make_workdir(folder: Path, model_dir: Path) -> Path:
    """Fill `folder` with the tokenizer of `model_dir` under MODEL's name, and with no_robots."""
    model = folder / MODEL
    model.mkdir(parents=True)
    for name in _TOKENIZER_FILES:
        if (model_dir / name).exists():
            shutil.copy(model_dir / name, model / name)
    chats = [_chat(fruit, colour) for fruit in _FRUITS for colour in _COLOURS]
    dataset = folder / "HuggingFaceH4" / "no_robots"
    write_rows(dataset / "train.jsonl", chats[:-8])
    write_rows(dataset / "test.jsonl", chats[-8:])
    return folder


def write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(file: Path) -> list[dict[str, object]]:
    """The whole lines of a file that may still be written to; none if it is not there yet."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _chat(fruit: str, colour: str) -> dict[str, object]:
    # A fixed form that no base model would guess: learnt in a few steps.
    question = f"Which label has a {colour} {fruit}?"
    answer = f"[[{fruit.upper()}//{colour.upper()}//{fruit[::-1]}]]"
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }
