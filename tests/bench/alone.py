"""The engine by itself, without server and messages, in the place of `tests.bench.plain`.

Reads "BATCH STEPS" lines and answers each with a JSON line: seconds, losses and seconds of the
optimizer of the steps, the best rate of matrix products of the moment, and the peak of its memory.

    python -m tests.bench.alone MODEL RANK UNEMBED(0|1)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops
from jupyter_tinker.wire import tinker_pb2 as pb
from tests.bench import device
from tests.bench.data import Sequence, batches

_multiply = torch.ops.mkldnn._linear_pointwise
_ADAM = ops.AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-12)


class EngineLoop:
    """One run, with the plain loop's adapter."""

    def __init__(self, model: Path, rank: int, *, unembed: bool) -> None:
        self.engine = Engine(ops.EngineOptions())
        spec = ops.LoraSpec(rank=rank, seed=0, train_unembed=unembed)
        self.engine.handle(
            ops.CreateRun(run="run", base_model="model", base_path=str(model), lora=spec)
        )

    def step(self, body: bytes) -> tuple[float, float]:
        """The loss, and the seconds of the optimizer."""
        stats, _ = self.engine.handle(ops.ForwardBackward(run="run", body=body))
        started = time.perf_counter()
        self.engine.handle(ops.OptimStep(run="run", adam=_ADAM))
        device.wait()
        return stats["loss_sum"], time.perf_counter() - started


def _body(batch: list[Sequence]) -> bytes:
    request = pb.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy")
    for sequence in batch:
        tokens = pb.EncodedTextChunk(tokens=np.array(sequence.tokens, "<i4").tobytes())
        datum = request.data.add(model_input=[pb.Chunk(encoded_text=tokens)])
        for name, array, dtype in (
            ("target_tokens", np.array(sequence.targets, "<i8"), pb.DTYPE_INT64),
            ("weights", sequence.weights.astype("<f4"), pb.DTYPE_FLOAT32),
        ):
            tensor = pb.Tensor(dense=array.tobytes(), dtype=dtype, shape=array.shape)
            datum.loss_fn_inputs[name].CopyFrom(tensor)
    return request.SerializeToString()


def flops(loop: EngineLoop, batch: list[Sequence]) -> float:
    """Floating-point operations of a step's matrix products, if none is done in vain: frozen
    weights forward and, for the input's gradient, back; adapters three times; of attention the
    half that is causal; the output layer back for tokens with a weight."""
    run = loop.engine.runs["run"]
    config = run.base.model.config
    tokens = sum(map(len, batch))
    active = sum(int((sequence.weights != 0).sum()) for sequence in batch)
    total = 0.0
    for projection in run.base.projections:
        ends = projection.in_features + projection.out_features
        product = projection.in_features * projection.out_features
        back = active if projection.part == "unembed" else tokens
        total += 2 * product * (tokens + back)
        if any(target.path == projection.path for target in run.adapter.targets):
            total += 2 * ends * run.lora.rank * (tokens + 2 * back)
    pairs = sum(len(sequence) ** 2 / 2 for sequence in batch)
    width = config.num_attention_heads * config.head_dim
    return total + 2 * width * pairs * (2 + 5) * config.num_hidden_layers


def best_rate(model: Path) -> float:
    """The most floating-point operations a second: on a GPU of large products, on the CPU of those
    of 1,024 tokens with weights in the model's shapes, by whichever of torch's libraries is
    faster."""
    if device.CUDA:
        x = torch.randn(8192, 8192, dtype=device.dtype(), device=device.DEVICE)
        return _rate(lambda: x @ x, 2 * 8192**3)
    config = json.loads((model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    best = 0.0
    for rows, columns in ((2 * inner, hidden), (hidden, inner)):
        x, weight = (torch.randn(n, columns, dtype=device.dtype()) for n in (1024, rows))
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1024)
        for way in (
            lambda x=x, weight=weight: x @ weight.T,
            lambda x=x, packed=packed: _multiply(x, packed, None, "none", [], ""),
        ):
            best = max(best, _rate(way, 2 * 1024 * rows * columns))
    return best


def _rate(way: Callable[[], object], operations: int) -> float:
    way()
    best = 0.0
    for _ in range(10):
        device.wait()
        started = time.perf_counter()
        way()
        device.wait()
        best = max(best, operations / (time.perf_counter() - started))
    return best


def main() -> None:
    model = Path(sys.argv[1])
    every = batches(model)
    loop = EngineLoop(model, int(sys.argv[2]), unembed=sys.argv[3] == "1")
    work = {name: flops(loop, batch) for name, batch in every.items()}
    print(json.dumps({"threads": torch.get_num_threads(), "flops": work}), flush=True)
    for line in sys.stdin:
        name, count = line.split()
        body = _body(every[name])
        seconds, losses, optimizer = [], [], []
        for _ in range(int(count)):
            started = time.perf_counter()
            loss, last = loop.step(body)
            seconds.append(time.perf_counter() - started)
            losses.append(loss)
            optimizer.append(last)
        answer = {"seconds": seconds, "losses": losses, "optimizer": optimizer}
        answer["peak_mib"] = device.peak_mib()
        print(json.dumps({**answer, "best_rate": best_rate(model)}), flush=True)


if __name__ == "__main__":
    main()
