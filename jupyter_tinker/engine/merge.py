"""A base model and a checkpoint made into one: every adapted weight becomes W + alpha/r B A.

The sum is taken in float32, whatever W is stored in, and rounded once by whoever writes it. Knows
nothing of the formats it is written in.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from ..wire.ops import EngineOptions, OpError
from . import base_model, checkpoint, stored
from .adapter import targets
from .base_model import BaseModel
from .checkpoint import Checkpoint
from .placement import Placement
from .progress import Report, unheard

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Merged:
    """The weights of a base model with a checkpoint's adapter in them, one at a time."""

    def __init__(self, base: BaseModel, checkpoint: Checkpoint) -> None:
        self.model: PreTrainedModel = base.model
        self._adapter = checkpoint.weights
        self._scale = checkpoint.lora.scale
        self._paths = {target.path for target in targets(base, checkpoint.lora)}
        output = base.model.get_output_embeddings()
        self._output = next(p for p, m in base.model.named_modules() if m is output)
        self._shared = base.is_tied

    @property
    def tied(self) -> bool:
        """Whether the output layer still is the embedding. An adapter on it parts the two."""
        return self._shared and self._output not in self._paths

    def names(self) -> list[str]:
        """The parameters to be stored, as the model calls them."""
        alias = f"{self._output}.weight" if self.tied else None
        return [name for name in self.model.state_dict() if name != alias]

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter in float32. Raises `OpError` if merging it overflows."""
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        value: torch.Tensor = getattr(module, leaf).float()
        if leaf == "weight" and path in self._paths:
            a, b = (self._adapter[f"{path}.{side}.weight"] for side in ("lora_A", "lora_B"))
            value = value + self._scale * (b.float() @ a.float())
        return finite(value, name, "float32")

    def fold(
        self, dtype: str, report: Callable[[float], None] = lambda done: None
    ) -> PreTrainedModel:
        """The model itself with these weights in `dtype`; what it had before is gone."""
        for number, path in enumerate(sorted(self._paths)):
            report(number / len(self._paths))
            weight = finite(self.tensor(f"{path}.weight").to(DTYPES[dtype]), path, dtype)
            # A parameter of its own: the embedding it may have been tied to stays as it is.
            self.model.get_submodule(path).weight = nn.Parameter(weight, requires_grad=False)
        self._shared, self._paths = self.tied, set()
        self.model.to(DTYPES[dtype])
        for name, parameter in self.model.named_parameters():
            finite(parameter, name, dtype)
        return self.model


def load(folder: Path, name: str, path: Path, report: Report = unheard) -> Merged:
    """The checkpoint in `folder`, and its base model `name` in `path`. Raises `OpError`."""
    dtype = "bfloat16" if own_dtype(path) == "bfloat16" else "float32"  # which holds float16 too
    placement = Placement("cpu", dtype, "sdpa", "for merging")
    base = base_model.load(name, path, EngineOptions(), placement, report)
    return Merged(base, checkpoint.read(folder, base, optimizer=False, repair=False))


def own_dtype(path: Path) -> str:
    """What the model in `path` is stored in, a name of `DTYPES`. Raises `OpError`."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise OpError(f"there is no base model at {path}: its config.json is unreadable") from None
    if config.get("quantization_config"):
        raise OpError(
            f"the base model at {path} is quantized, and an adapter cannot be merged into "
            f"quantized weights; export the adapter alone"
        )
    dtype = stored.dtype_of(path, config)
    if dtype not in DTYPES:
        raise OpError(f"the base model at {path} is stored in {dtype}, which cannot be merged into")
    return dtype


def finite(value: torch.Tensor, name: str, dtype: str) -> torch.Tensor:
    """`value`, or an `OpError` if it holds what is no number."""
    if not torch.isfinite(value).all():
        raise OpError(f"{name} does not fit into {dtype}; choose another --dtype")
    return value
