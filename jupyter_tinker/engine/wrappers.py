"""PEFT's layers around those of a base model, which carry the adapters of runs that transformers
and PEFT compute.

A run gets them with its first pass there. Where `fast` computes, none are ever made, and PEFT is
not even imported: both would take time of every cold start. The numbers stay in the adapter: PEFT's
parameters are views of them. Knows nothing of losses or files.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from ..wire.ops import LoraSpec

if TYPE_CHECKING:
    from peft import LoraConfig

    from .adapter import Adapter
    from .base_model import Projection


class Wrappers:
    """Of one base model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._wrapped: set[str] = set()  # adapters, by their names
        self._active: str | None = None

    def activate(self, adapter: Adapter) -> None:
        """Let `adapter`, and no other, take part in the forward pass and receive gradients."""
        if adapter.name == self._active:
            return
        from peft.tuners.lora import LoraLayer

        self._active = None
        if adapter.name not in self._wrapped:
            try:
                self._wrap(adapter)
            except BaseException:  # memory that ran out amid the layers
                self.remove(adapter)
                raise
        for module in self._model.modules():
            if isinstance(module, LoraLayer):
                module.set_adapter([adapter.name])
        self._active = adapter.name

    def remove(self, adapter: Adapter) -> None:
        """Take the adapter off the base model, and the layers that no other run needs."""
        if adapter.name not in self._wrapped:
            return
        for target in adapter.targets:
            layer = self._model.get_submodule(target.path)
            if isinstance(layer, nn.Linear):  # PEFT did not come so far
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT tells which adapter it falls back to
                layer.delete_adapter(adapter.name)
            if not layer.lora_A:
                self._model.set_submodule(target.path, layer.base_layer)
        self._wrapped.remove(adapter.name)
        self._active = None

    def _wrap(self, adapter: Adapter) -> None:
        from peft import inject_adapter_in_model

        self._wrapped.add(adapter.name)
        config = peft_config(adapter.targets, adapter.spec)
        with warnings.catch_warnings():
            # On tied embeddings PEFT warns of merging, which is never done here.
            warnings.simplefilter("ignore")
            # The low-memory mode leaves PEFT's own parameters empty: these are put in their place.
            inject_adapter_in_model(config, self._model, adapter.name, low_cpu_mem_usage=True)
        for target in adapter.targets:
            layer = self._model.get_submodule(target.path)
            for side in ("lora_A", "lora_B"):
                key = f"{target.path}.{side}.weight"
                parameter = nn.Parameter(adapter.views[key])
                parameter.grad = adapter.gradient_views[key]
                getattr(layer, side)[adapter.name].weight = parameter


def plain(module: nn.Module) -> nn.Linear:
    """The layer of the base model behind PEFT's, where there is one."""
    return getattr(module, "base_layer", module)


def peft_config(targets: list[Projection], spec: LoraSpec) -> LoraConfig:
    """PEFT's description of an adapter; full paths, so that it matches no other layer."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=[target.path for target in targets],
    )
