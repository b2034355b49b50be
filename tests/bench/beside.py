"""What a snapshot costs the step beside which it is written: the engine alone, without a server.

Prints a JSON line: seconds of steps without and with a snapshot, in turns, and what each snapshot
was counted with by the one who decides when the next is due.

    python -m tests.bench.beside MODEL RANK PAIRS
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops
from tests.bench.data import Sequence, batches
from tests.raw import datum
from tests.raw import pb as wire

_RUN = "bench"


def main() -> None:
    model, rank, pairs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    engine = Engine()
    engine.start(ops.Start(ops.EngineOptions()))
    engine.handle(ops.CreateRun(_RUN, "model", str(model), ops.LoraSpec(rank=rank, seed=0)))
    body = _body(batches(model)["4x128"])
    _step(engine, body)
    alone, beside, counted = [], [], []
    with TemporaryDirectory(prefix="tinker-bench-") as folder:
        for number in range(pairs + 1):
            alone.append(_step(engine, body))
            started = time.perf_counter()
            answer = engine.perform(ops.SnapshotRun(_RUN, f"{folder}/{number}.safetensors"))
            assert isinstance(answer, Future)
            _step(engine, body)
            beside.append(time.perf_counter() - started)
            info = ops.SnapshotInfo(**answer.result()[0])
            counted.append(info.blocked_seconds + info.write_seconds)
    # The first makes the memory that all others use.
    print(json.dumps({"alone": alone[1:], "beside": beside[1:], "counted": counted[1:]}))


def _body(batch: list[Sequence]) -> bytes:
    request = wire.ForwardBackwardRequest(model_id=_RUN, seq_id=1, loss_fn="cross_entropy")
    request.data.extend(datum(s.tokens, s.targets, s.weights.tolist()) for s in batch)
    return request.SerializeToString()


def _step(engine: Engine, body: bytes) -> float:
    started = time.perf_counter()
    engine.handle(ops.ForwardBackward(_RUN, body))
    engine.handle(ops.OptimStep(_RUN, ops.AdamParams()))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
