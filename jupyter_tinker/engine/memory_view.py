"""What the engine's memory is used for, as people read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import memory

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .engine import Engine
    from .run import Run


@dataclass(frozen=True, repr=False)
class Memory:
    """Bytes. `used` is the process's on the CPU, and torch's on an accelerator."""

    device: str
    used: int
    total: int | None  # of the accelerator
    base_models: dict[str, int]
    runs: dict[str, int]  # weights, gradients and the two moments
    samples: int  # keys and values of what is being sampled

    @classmethod
    def of(cls, engine: Engine) -> Memory:
        device = engine.placement.torch_device
        total = None
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
        return cls(
            device=engine.placement.device,
            used=memory.used(device),
            total=total,
            base_models={base.name: _of_base(base) for base in engine.bases.values()},
            runs={name: _of_run(run) for name, run in engine.runs.items()},
            samples=sum(lane.reserved_bytes for lane in engine.sampling.lanes.values()),
        )

    def __repr__(self) -> str:
        of = "" if self.total is None else f" of {_words(self.total)}"
        lines = [f"{self.device}: {_words(self.used)}{of} in use"]
        lines += [f"  base model {name}: {_words(size)}" for name, size in self.base_models.items()]
        lines += [f"  run {name}: {_words(size)}" for name, size in self.runs.items()]
        if self.samples:
            lines.append(f"  keys and values of samples: {_words(self.samples)}")
        return "\n".join(lines)


def _of_base(base: BaseModel) -> int:
    tensors = [*base.model.named_parameters(), *base.model.named_buffers()]
    return sum(tensor.nbytes for name, tensor in tensors if ".lora_" not in name)


def _of_run(run: Run) -> int:
    adapter, optimizer = run.adapter, run.optimizer
    parts = (adapter.weights, adapter.gradients, optimizer.mean, optimizer.square)
    return sum(tensor.nbytes for tensor in parts)


def _words(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
