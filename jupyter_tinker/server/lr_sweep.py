"""One sweep over the learning rates of a run: what it is made with, how far it is, what it says.

Knows nothing of the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..wire import ops
from ..wire.lr_find import SweepSettings
from .lr_curve import Curve
from .schema import OperationRow

Status = Literal["running", "done", "failed", "cancelled"]
Stage = Literal["copying", "measuring", "sweeping", "stopping"]
Batch = tuple[str, ...]  # the requests whose payloads it is made of


@dataclass(eq=False)
class Sweep:
    """A sweep over a copy of a run, and what it has found."""

    run_id: str
    step: int  # of the run, when it was copied
    settings: SweepSettings
    actor: str
    batches: list[Batch]
    adam: ops.AdamParams  # of its steps, but for the learning rate
    status: Status = "running"
    stage: Stage | None = "copying"
    curve: Curve | None = None
    message: str | None = None  # why it failed, or what is to be said of the suggestion
    started_at: float = field(default_factory=time.time)
    finished_at: float | None = None
    task: asyncio.Task[None] | None = None

    def end(self, status: Status, message: str | None) -> None:
        self.status, self.stage, self.message = status, None, message
        self.finished_at = time.time()

    def abandon(self) -> None:
        """It was cancelled, perhaps before it began; what has ended otherwise stays as it is."""
        if self.status == "running":
            self.end("cancelled", "The sweep was cancelled.")

    def to_json(self) -> dict[str, Any]:
        points = [] if self.curve is None else self.curve.points
        found = None
        if self.curve is not None and self.status == "done":
            found = self.curve.suggestion()
        return {
            "run_id": self.run_id,
            "status": self.status,
            "stage": self.stage,
            "step": self.step,
            "settings": self.settings.model_dump(),
            "batches": len(self.batches),
            "actor": self.actor,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "points": [asdict(point) for point in points],
            "diverged": self.curve is not None and self.curve.diverged,
            "suggestion": None if found is None else asdict(found),
            "message": self.message,
        }


def batches_of(operations: Sequence[OperationRow], *, begun: bool = True) -> list[Batch]:
    """What a run's steps were made with, oldest first: a batch is all that its client accumulated
    for one optimizer step. Where no step was made yet, each `forward_backward` is one.

    `begun`: the operations are all; else the first may be amid a step, which is left out.
    """
    stepped: list[Batch] = []
    pending: list[str] = []
    for operation in operations:
        if operation.kind == "forward_backward" and operation.request_id is not None:
            pending.append(operation.request_id)
        elif operation.kind != "spoiled":
            if operation.kind == "optim_step" and pending and begun:
                stepped.append(tuple(pending))
            pending, begun = [], True
    return stepped or [(request_id,) for request_id in pending]


def last_adam(operations: Sequence[OperationRow]) -> ops.AdamParams:
    """What the newest optimizer step was made with; the SDK's defaults before there is one."""
    made = [operation for operation in operations if operation.kind == "optim_step"]
    return ops.AdamParams(**made[-1].data["adam"]) if made else ops.AdamParams()


def remark(sweep: Sweep) -> str | None:
    """What is to be said of a sweep's suggestion; None if nothing is."""
    assert sweep.curve is not None
    found = sweep.curve.suggestion()
    if found is None:
        return (
            "The loss did not fall at any learning rate, so there is no suggestion. A run that has "
            "learned these batches has nothing to gain from them: try newer ones, or more."
        )
    if not sweep.curve.diverged and found.lowest == sweep.curve.points[-1].learning_rate:
        return "The loss still fell at the end of the sweep; a higher `max` may suggest more."
    return None
