"""An engine with runs that have been trained, and the short ways of the tests to look inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from jupyter_tinker.engine import snapshot
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.inside import EngineView
from jupyter_tinker.engine.inside_run import LayerView
from jupyter_tinker.engine.run import Run
from jupyter_tinker.wire import ops

from .reference import request, samples

TOKENS = [3, 17, 99, 4, 200, 17, 42]
LORA = ops.LoraSpec(rank=4, seed=7)


def backward(engine: Engine, run: str, seed: int) -> None:
    engine.handle(ops.ForwardBackward(run, request(samples(seed))))


def step(engine: Engine, run: str = "run", seed: int = 0) -> None:
    backward(engine, run, seed)
    engine.handle(ops.OptimStep(run, ops.AdamParams(learning_rate=1e-2, weight_decay=0.1)))


@pytest.fixture
def trained(engine: Engine, base: Path) -> Engine:
    """An engine with two runs, one of them in the midst of a step."""
    for name in ("run", "other"):
        engine.handle(ops.CreateRun(name, "tiny", str(base), LORA))
        step(engine, name)
    backward(engine, "run", 1)
    return engine


def view(engine: Engine) -> EngineView:
    return EngineView(engine)


def state(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in snapshot.copy(run).tensors.items()}


def layers_of(engine: Engine, name: str = "run") -> Iterator[LayerView]:
    return iter(view(engine).runs[name].adapter.values())
