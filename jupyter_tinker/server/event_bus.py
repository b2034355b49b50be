"""Tells Jupyter's own event bus what happens to runs and to the engine.

Its schemas are the YAML files of `event_schemas`, one for each group of kinds; steps are left out,
of which there are too many.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..wire.events import Event, Kind

if TYPE_CHECKING:
    from jupyter_events import EventLogger

_URI = "https://events.jupyter.org/jupyter_tinker"
_FILES = Path(__file__).parent / "event_schemas"

_KINDS: dict[str, tuple[Kind, ...]] = {
    "run": (
        "run_created",
        "run_ended",
        "run_unloaded",
        "run_revived",
        "request_failed",
        "rewound",
        "forked",
        "checkpoint_saved",
        "history_trimmed",
        "lr_find_started",
        "lr_find_done",
        "preview_sampled",
    ),
    "control": ("control_changed", "paused", "resumed", "guard", "preview_changed"),
    "engine": ("engine_started", "engine_died", "engine_stopped"),
}
SCHEMAS = {kind: f"{_URI}/{group}/v1" for group, kinds in _KINDS.items() for kind in kinds}


class JupyterEventBus:
    """Emits events as Jupyter's; whatever goes wrong there is logged and goes no further."""

    def __init__(self, logger: EventLogger, log: Any) -> None:
        self._logger = logger
        self._log = log
        for group in _KINDS:
            if f"{_URI}/{group}/v1" not in logger.schemas:
                logger.register_event_schema(_FILES / group / "v1.yaml")

    def __call__(self, event: Event) -> None:
        schema = SCHEMAS.get(event.kind)
        if schema is None:
            return
        try:
            self._logger.emit(schema_id=schema, data=event.to_json())
        except Exception as error:
            # Not all of it: a validator's message repeats the whole event and its schema.
            reason = str(error).partition("\n")[0]
            self._log.warning("Event %d was not told to Jupyter's event bus: %s", event.id, reason)
