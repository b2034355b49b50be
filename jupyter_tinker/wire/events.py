"""What watchers are told of runs and of the engine: one form for steps and everything else."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "step",
    "run_created",
    "run_ended",
    "run_unloaded",
    "run_revived",
    "request_failed",
    "control_changed",
    "paused",
    "resumed",
    "rewound",
    "forked",
    "guard",
    "checkpoint_saved",
    "history_trimmed",
    "lr_find_started",
    "lr_find_done",
    "preview_changed",
    "preview_sampled",
    "engine_started",
    "engine_died",
    "engine_stopped",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `id` rises over all events and steps of a server."""

    id: int
    run_id: str | None  # None: of the engine or the server
    time: float  # Unix seconds
    kind: Kind
    actor: str | None  # who did it, where somebody did
    step: int | None  # of the run's optimizer, at that time
    data: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def encode(event: Event) -> bytes:
    """The event as Server-Sent Events have it, with the blank line behind it.

    Numbers that are not finite become null: JSON has none. Never fails.
    """
    return f"id: {event.id}\nevent: {event.kind}\ndata: {dumps(event.to_json())}\n\n".encode()


def dumps(value: Any) -> str:
    """A value as JSON that any reader takes: numbers that are not finite become null."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(_plain(value))


def _plain(value: Any) -> Any:
    """What JSON can say of a value."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int) else str(value)
