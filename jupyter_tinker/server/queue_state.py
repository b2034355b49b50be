"""Why a request is still pending, in the protocol's words.

The SDK shows a reason only with a paused state: of a sample at once, of training after a quarter of
an hour. So "paused" is said only of what nobody works on yet, and that not for the first seconds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .futures import Request

if TYPE_CHECKING:
    from .service import TinkerService

_WORTH_A_WORD = 5.0  # seconds


def queue_state(service: TinkerService, request_id: str) -> dict[str, str]:
    """The fields that say it in the answer of a poll."""
    request = service.futures.pending(request_id)
    reason = None
    if request is not None and time.monotonic() - request.accepted >= _WORTH_A_WORD:
        reason = _reason(service, request)
    if reason is None:
        return {"queue_state": "active"}
    return {"queue_state": "paused_capacity", "queue_state_reason": reason}


def _reason(service: TinkerService, request: Request) -> str | None:
    if service.supervisor.starting:
        return "the engine is starting"
    if request.kind == "sample":
        ahead = service.sampling.ahead(request.id)
        loading = service.sampling.pump.loading
        if ahead is not None and loading is not None:
            return f"the engine is loading {loading.base_model} to sample from it"
        return None if ahead is None else _behind(ahead)
    if request.run_id in service.trainer.loading:
        return f"the engine is loading {service.trainer.loading[request.run_id]}"
    if service.trainer.computing.get(request.run_id) is request:
        return None
    return _behind(service.futures.ahead(request))


def _behind(ahead: int) -> str:
    if ahead == 0:
        return "it is next, once the engine has finished what it does now"
    return f"the engine is busy with {ahead} request{'s' if ahead > 1 else ''} before it"
