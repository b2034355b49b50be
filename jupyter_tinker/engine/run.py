"""A run: an adapter in training, and how far it is. Knows nothing of how it is trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..wire.ops import LoraSpec
from .adamw import AdamW
from .adapter import Adapter
from .base_model import BaseModel


@dataclass
class Run:
    """An adapter in training: its weights, gradients and optimizer."""

    name: str
    adapter: Adapter
    optimizer: AdamW
    step: int = 0  # of the optimizer
    has_gradients: bool = False

    @property
    def base(self) -> BaseModel:
        return self.adapter.base

    @property
    def lora(self) -> LoraSpec:
        return self.adapter.spec

    def zero_grad(self) -> None:
        if self.has_gradients:
            self.adapter.gradients.zero_()
            self.has_gradients = False
