"""Our side: a server process, and training on it through the official SDK."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["TINKER_TELEMETRY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import psutil
import tinker
from tinker import types

from tests.bench.data import Sequence
from tests.servers import Server, start_server

MODEL = "smollm2"
RANK = 32
_ADAM = types.AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-12)
_TIMEOUT = 300.0


@contextmanager
def server(
    model: Path, *, prepare: Callable[[Path], None] = lambda home: None, **options: Any
) -> Iterator[Server]:
    """`jupyter tinker` in a home of its own, which may be prepared, ended with the block."""
    with TemporaryDirectory(prefix="tinker-bench-") as home:
        prepare(Path(home))
        started = start_server(Path(home), models={MODEL: model}, **options)
        try:
            yield started
        finally:
            started.stop()


class Client:
    """One run of a server."""

    def __init__(self, server: Server, *, unembed: bool = True) -> None:
        self.server = server
        self.service = tinker.ServiceClient(base_url=server.url, api_key=server.key)
        self.training = self.service.create_lora_training_client(
            base_model=MODEL, rank=RANK, seed=0, train_unembed=unembed
        ).result(timeout=_TIMEOUT)

    def steps(self, data: list[types.Datum], count: int) -> tuple[list[float], list[float]]:
        """Seconds and losses of `count` steps, with forward_backward and optim_step in flight."""
        seconds, losses = [], []
        for _ in range(count):
            started = time.perf_counter()
            forward = self.training.forward_backward(data, "cross_entropy")
            optim = self.training.optim_step(_ADAM)
            losses.append(forward.result(timeout=_TIMEOUT).metrics["loss:sum"])
            optim.result(timeout=_TIMEOUT)
            seconds.append(time.perf_counter() - started)
        return seconds, losses

    def empty_step(self) -> float:
        """Seconds of an optim_step that has no gradients and learning rate zero."""
        started = time.perf_counter()
        self.training.optim_step(types.AdamParams(learning_rate=0.0)).result(timeout=_TIMEOUT)
        return time.perf_counter() - started

    def compute_seconds(self, count: int) -> list[float]:
        return compute_seconds(self.server, self.training.get_info().model_id, count)

    def close(self) -> None:
        self.service.close("success").result(timeout=_TIMEOUT)


def compute_seconds(server: Server, run: str, count: int) -> list[float]:
    """What the engine itself counted for a run's last `count` steps."""
    status, answer = server.fetch(f"tinker/runs/{run}/steps")
    assert status == 200, answer
    return [row["compute_seconds"] for row in answer["steps"]][-count:]


def datums(batch: list[Sequence]) -> list[types.Datum]:
    """The SDK's form of a batch."""
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(sequence.tokens),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_numpy(np.array(sequence.targets, np.int64)),
                "weights": types.TensorData.from_numpy(sequence.weights),
            },
        )
        for sequence in batch
    ]


def engine_peak_mib(server: Server) -> float:
    """The most memory that the engine's process has had resident."""
    return _engine_mib(server, "VmHWM")


def engine_mib(server: Server) -> float:
    """What it has resident now."""
    return _engine_mib(server, "VmRSS")


def _engine_mib(server: Server, field: str) -> float:
    lines = Path(f"/proc/{server.engine_pid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def rss_mib(server: Server) -> float:
    return float(psutil.Process(server.process.pid).memory_info().rss / 2**20)
