"""The folder from which the cookbook's recipes find model names and data sets without a network.

`AutoTokenizer` and `load_dataset` prefer a folder of the name that they are given to the hub. So
the working directory of a recipe holds folders named like the hub's models and data sets.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

# Names that the cookbook knows, and the server's aliases for our model.
MODEL = "Qwen/Qwen3-8B-Base"
TEACHER = "Qwen/Qwen3-8B"

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
    """Fill `folder` with the tokenizer of `model_dir` under the models' names, and with small data
    sets under those of the recipes' own."""
    for name in (MODEL, TEACHER):
        (folder / name).mkdir(parents=True)
        for file in _TOKENIZER_FILES:
            if (model_dir / file).exists():
                shutil.copy(model_dir / file, folder / name / file)
    pairs = [(colour, fruit) for fruit in _FRUITS for colour in _COLOURS]
    chats = [_chat(fruit, colour) for colour, fruit in pairs]
    _write_splits(folder / "HuggingFaceH4" / "no_robots", 4 * chats[:-8], chats[-8:])
    sums = [_sum(first, second) for first in range(1, 9) for second in range(1, 9)]
    _write_named(folder / "openai" / "gsm8k", "main", {"train": sums[:-8], "test": sums[-8:]})
    preferences = [_preference(*pair) for pair in pairs]
    _write_splits(folder / "Anthropic" / "hh-rlhf", preferences[:-8], preferences[-8:])
    questions = [{"question": row["question"], "final_answer": "2"} for row in sums]
    write_rows(folder / "zwhe99" / "DeepMath-103K" / "train.jsonl", questions)
    return folder


def _write_splits(
    folder: Path, train: list[dict[str, object]], test: list[dict[str, object]]
) -> None:
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "test.jsonl", test)


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


def _sum(first: int, second: int) -> dict[str, object]:
    total = first + second
    return {
        "question": f"What is {first} plus {second}?",
        "answer": f"{first} plus {second} is {total}.\n#### {total}",
    }


def _preference(colour: str, fruit: str) -> dict[str, object]:
    asked = f"\n\nHuman: Name something {colour}.\n\nAssistant:"
    return {"chosen": f"{asked} A {colour} {fruit}.", "rejected": f"{asked} I do not want to."}


def _write_named(folder: Path, config: str, splits: dict[str, list[dict[str, object]]]) -> None:
    """A data set whose configuration has a name, which its README must declare."""
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, rows in splits.items():
        write_rows(folder / f"{split}.jsonl", rows)
        lines += [f"  - split: {split}", f"    path: {split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
