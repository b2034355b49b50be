"""What a folder must hold to be a base model: a config, safetensors weights, a causal architecture.

Reads the config and the names of files, never a weight.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "jupyter_tinker.json"  # what `pull` notes in the folder of a pulled model
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class InvalidModelError(ValueError):
    """A folder is not a base model that can be trained; the message says what is wrong with it."""


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine, under the name that it was asked for by."""

    name: str
    path: Path
    context_length: int | None
    vocab_size: int
    architecture: str
    hub_id: str | None
    tokenizer: bool  # the folder holds the tokenizer's files too

    @property
    def size_on_disk(self) -> int:
        """Bytes of all files in the model's folder."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())


def is_model_name(name: str) -> bool:
    """Whether `name` is one word or org/word: what can be joined to a folder without leaving it."""
    legal = len(name) <= 200 and _NAME.fullmatch(name) is not None
    return legal and ".." not in name and "--" not in name


def as_folder(name: str) -> Path | None:
    """The folder that `name` names by its absolute path (or from ~); None if it is no such path."""
    if "\0" in name or not name:
        return None
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    return path if path.is_absolute() else None


def hub_snapshot(cache: Path, name: str) -> Path | None:
    """The folder of a hub model's files in the Hugging Face cache, newest of the main branch."""
    if not is_model_name(name):
        return None
    repository = cache / f"models--{name.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if re.fullmatch("[0-9a-f]{4,64}", commit) and snapshot.is_dir() else None


def inspect_folder(folder: Path, name: str, *, hub_id: str | None = None) -> BaseModel:
    """The base model in `folder`; raises `InvalidModelError` if there is none to be trained."""
    config = _config(folder)
    architecture = _architecture(folder, config)
    _check_weights(folder)
    return BaseModel(
        name=name,
        path=folder,
        context_length=_positive(config, "max_position_embeddings", "n_positions", "seq_length"),
        vocab_size=_positive(config, "vocab_size") or 0,
        architecture=architecture,
        hub_id=hub_id,
        tokenizer=any((folder / file).is_file() for file in _TOKENIZERS),
    )


def inspect_pulled(folder: Path) -> BaseModel:
    """The base model that `pull` laid into `folder`, or whose place it noted there."""
    manifest: dict[str, Any] = {}
    if (folder / MANIFEST).is_file():  # somebody may have put a folder there by hand
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    path = Path(manifest.get("path") or folder)
    return inspect_folder(path, folder.name, hub_id=manifest.get("hub_id"))


def check_architecture(folder: Path) -> str:
    """The causal architecture that the folder's config names; raises `InvalidModelError`."""
    return _architecture(folder, _config(folder))


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidModelError(f"{folder} is not a model: it has no config.json.") from None
    except ValueError as error:
        raise InvalidModelError(f"{folder}/config.json is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise InvalidModelError(f"{folder}/config.json is not a JSON object.")
    return config


def _architecture(folder: Path, config: dict[str, Any]) -> str:
    listed = config.get("architectures")
    named = [str(entry) for entry in listed] if isinstance(listed, list) else []
    for architecture in named:
        if architecture.endswith("ForCausalLM"):
            return architecture
    raise InvalidModelError(
        f"{folder} holds {' and '.join(named) or 'a model of no named architecture'}; "
        "only causal language models (...ForCausalLM) can be trained."
    )


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = [name for name in _shards(index) if not (folder / name).is_file()]
        if missing:
            raise InvalidModelError(f"{folder} is incomplete: {', '.join(missing)} is missing.")
    elif not (folder / "model.safetensors").is_file():
        present = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLED)
        pickled = f" {present[0]} is pickled, and would run code when loaded." if present else ""
        raise InvalidModelError(f"{folder} has no safetensors weights.{pickled}")


def _shards(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InvalidModelError(f"{index} is not an index of safetensors files.") from None
    if any(not isinstance(shard, str) or os.path.basename(shard) != shard for shard in shards):
        raise InvalidModelError(f"{index} names files outside its folder.")
    return [str(shard) for shard in shards]


def _positive(config: dict[str, Any], *keys: str) -> int | None:
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
