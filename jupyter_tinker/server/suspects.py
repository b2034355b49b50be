"""Requests that an earlier life of the server left undone: at one of them it may have died.

What kills the server together with its engine, as too little memory does, would do so in every
life. So what is left undone is done one at a time, and the database knows which it is just then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from sqlalchemy import update
from sqlalchemy.orm import Session

from ..wire import ops
from .backlog import Backlog
from .futures import Request
from .schema import RequestRow

# Of lives that ended while nothing else was suspected. That of the one before them, which accepted
# the request, is not known to have been at it. People end servers, too: several times in a row at
# one request is no chance.
_DEATHS = 4


class Suspects:
    """Has them done one at a time; others pass."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._one = asyncio.Lock()

    @asynccontextmanager
    async def alone(self, request: Request) -> AsyncIterator[None]:
        """Within it a request is done. Raises `OpError` where the server died of it."""
        if request.deaths is None:
            yield
            return
        if request.deaths >= _DEATHS:
            raise ops.OpError(_deadly(request, request.deaths + 1), "server")
        async with self._one:
            await self._backlog.put(partial(_store, request.id, request.deaths + 1))
            try:
                yield
            finally:  # whatever became of it, also where the server stops in its own time
                self._backlog.put(partial(_store, request.id, request.deaths))


def _store(request_id: str, deaths: int, db: Session) -> None:
    change = update(RequestRow).where(RequestRow.id == request_id)
    db.connection().execute(change.values(deaths=deaths))


def _deadly(request: Request, lives: int) -> str:
    return (
        f"The server ended {lives} times while this request ({request.kind} number "
        f"{request.seq_id}) was under way, so it is given up; the run goes on from before it. If "
        "memory ran out, send smaller batches or shorter sequences, or lower "
        "EngineSupervisor.microbatch_tokens."
    )
