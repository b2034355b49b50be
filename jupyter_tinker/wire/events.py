"""What watchers are told of runs and of the engine: one form for steps and everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "step",
    "run_created",
    "run_ended",
    "run_unloaded",
    "run_revived",
    "control_changed",
    "paused",
    "resumed",
    "rewound",
    "forked",
    "guard",
    "checkpoint_saved",
    "history_trimmed",
    "engine_started",
    "engine_died",
]


@dataclass(frozen=True)
class Event:
    """Something that happened; `id` rises over all events and steps of a server."""

    id: int
    run_id: str | None  # None: of the engine or the server
    time: float  # Unix seconds
    kind: Kind
    actor: str | None  # who did it, where somebody did
    step: int | None  # of the run's optimizer, at that time
    data: dict[str, Any]
