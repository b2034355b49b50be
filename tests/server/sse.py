"""Server-Sent Events as a client reads them, and steps to tell of."""

from __future__ import annotations

import json
import time
from typing import Any

from jupyter_tinker.server.schema import StepRow
from jupyter_tinker.wire.events import Event


def step_row(run: str, step: int) -> StepRow:
    """A step as the trainer makes it; its id is set when it is recorded."""
    return StepRow(
        run_id=run,
        branch=0,
        step=step,
        time=time.time(),
        skipped=None,
        loss_sum=1234.5678 / step,
        loss_mean=1.2345678 / step,
        weight_sum=1000.0,
        tokens=1024,
        datums=8,
        grad_norm=0.5,
        update_norm=0.001234,
        learning_rate=1e-4,
        learning_rate_requested=2e-4,
        grad_clip_norm=1.0,
        grad_clip_norm_requested=0.0,
        weight_decay=0.0,
        weight_decay_requested=0.0,
        compute_seconds=0.1234,
        wait_seconds=0.001,
        memory_bytes=123_456_789,
    )


def fields(block: str) -> dict[str, str]:
    """What one block between blank lines says; comments are left out."""
    lines = [line for line in block.split("\n") if line and not line.startswith(":")]
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}


def progress(body: bytes) -> list[dict[str, Any]]:
    """What whole blocks say of long work; they must have no id."""
    said = [fields(block) for block in body.decode().split("\n\n")]
    told = [one for one in said if one.get("event") == "progress"]
    assert all("id" not in one for one in told)
    return [json.loads(one["data"]) for one in told]


def parse(body: bytes) -> list[Event]:
    """The events in whole blocks, whose lines must agree with their data; how far long work is
    is none, nor that the server is there."""
    found = []
    for block in body.decode().split("\n\n"):
        said = fields(block)
        if "data" not in said or said["event"] in ("progress", "heartbeat"):
            continue
        event = Event(**json.loads(said["data"]))
        assert (said["id"], said["event"]) == (str(event.id), event.kind)
        found.append(event)
    return found
