"""In which type a model's weights are stored. Knows nothing of what is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

_SHORT = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def dtype_of(path: Path, config: Mapping[str, Any]) -> str:
    """Torch's name of the type, of the model in the folder `path` with this `config.json`, which
    mostly says so; else its first file's first weight does."""
    text = config.get("text_config") or {}
    stated = (c.get(key) for c in (config, text) for key in ("dtype", "torch_dtype"))
    dtype = next((str(value).removeprefix("torch.") for value in stated if value), None)
    return dtype or _first(path)


def _first(path: Path) -> str:
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                name = tensors.get_slice(key).get_dtype()
                return _SHORT.get(name, name)
    return "no known type"
