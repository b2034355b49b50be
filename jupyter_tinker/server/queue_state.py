"""Why a request is still pending, in the protocol's words.

The SDK shows a reason only with a paused state: of a sample at once, of training after a quarter of
an hour. So "paused" is said only of what nobody works on yet, and that not for the first seconds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..wire.controls import Controls
from .futures import Request
from .registry import why_ended
from .revival import replay_in_words
from .schema import RunRow

if TYPE_CHECKING:
    from .service import TinkerService

_WORTH_A_WORD = 5.0  # seconds


def queue_state(service: TinkerService, request_id: str) -> dict[str, str]:
    """The fields that say it in the answer of a poll."""
    request = service.futures.pending(request_id)
    reason = None if request is None else _held_back(service, request)
    if request is not None and time.monotonic() - request.accepted >= _WORTH_A_WORD:
        reason = reason or _reason(service, request)
    if reason is None:
        return {"queue_state": "active"}
    return {"queue_state": "paused_capacity", "queue_state_reason": reason}


def state_of(service: TinkerService, row: RunRow) -> str:
    """What a run does now, in a word."""
    run = service.registry.known(row.id)
    if (why_ended(row) if run is None else run.ended) is not None:
        return "ended"
    if run is None:
        paused = Controls.from_json(row.controls).paused
        return "paused" if paused else "idle"
    if run.replay is not None:
        return "reviving"
    if run.id in service.trainer.computing:
        return "training"
    if run.held_back:
        return "paused"
    return "waiting" if service.supervisor.holds(run.generation) else "idle"


def _held_back(service: TinkerService, request: Request) -> str | None:
    """Why a request waits that a person, or a rule, lets wait; said at once."""
    run = service.registry.known(request.run_id)
    if run is None or not run.held_back or request.run_id in service.trainer.computing:
        return None
    return f"the run is paused: {run.controls.paused_because}"


def _reason(service: TinkerService, request: Request) -> str | None:
    if service.supervisor.starting:
        return "the engine is starting"
    if (seconds := service.supervisor.cell_seconds) is not None and seconds >= 1:
        return f"a person's cell has been running on the engine's kernel for {seconds:.0f} s"
    if request.kind == "sample":
        ahead = service.sampling.ahead(request.id)
        loading = service.sampling.pump.loading
        if ahead is not None and loading is not None:
            return f"the engine is loading {loading.base_model} to sample from it"
        return None if ahead is None else _behind(ahead)
    run = service.registry.known(request.run_id)
    reviving = None if run is None else replay_in_words(run)
    if reviving is not None:
        return reviving
    if request.run_id in service.run_loader.loading:
        return f"the engine is loading {service.run_loader.loading[request.run_id]}"
    if service.trainer.computing.get(request.run_id) is request:
        return None
    return _behind(service.futures.ahead(request))


def _behind(ahead: int) -> str:
    if ahead == 0:
        return "it is next, once the engine has finished what it does now"
    return f"the engine is busy with {ahead} request{'s' if ahead > 1 else ''} before it"
