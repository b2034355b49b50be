"""Losses that clients define: checked by an engine, kept in the database, sent along when used.

The engine keeps none of them: one that was started anew needs nothing but the next request.
"""

from __future__ import annotations

import time
from typing import Any

from ..wire import ops, tinker
from .backlog import patiently
from .database import Database
from .engine_client import EngineDied
from .futures import Futures, Request, failure, success
from .schema import CustomLossRow
from .supervisor import EngineSupervisor

_DEATHS = 2  # of engines while a loss is checked, which is then given up


class CustomLosses:
    """All custom losses of this server."""

    def __init__(
        self, database: Database, supervisor: EngineSupervisor, futures: Futures, log: Any
    ) -> None:
        self._db = database
        self._supervisor = supervisor
        self._futures = futures
        self._log = log

    async def create(self, request: Request) -> None:
        """Do an accepted `create_custom_loss`, whose `run_id` is its session; never raises."""
        try:
            result = success(await self._create(request))
        except ops.OpError as error:
            result = failure(error.message, error.category)
        except EngineDied as error:
            result = failure(f"This loss could not be checked: {error}.", "server")
        except Exception as error:
            self._log.exception("Request %s (%s) failed.", request.id, request.kind)
            result = failure(f"The server failed: {type(error).__name__}: {error}", "server")
        self._futures.complete(request, result)

    async def _create(self, request: Request) -> dict[str, str]:
        definition = request.payload.decode(errors="replace")
        await self._check(ops.CheckCustomLoss(definition))
        row = CustomLossRow(
            id=f"{request.run_id}:loss:{request.seq_id}",
            session_id=request.run_id,
            definition=request.payload,
            created_at=time.time(),
        )
        # An earlier life may have stored it.
        await patiently(lambda: self._db.call(lambda db: db.merge(row)))
        return {"loss_id": row.id, "type": request.kind}

    async def _check(self, op: ops.CheckCustomLoss) -> None:
        for deaths in range(1, _DEATHS + 1):
            try:
                await self._supervisor.request(op)
                return
            except EngineDied:
                if deaths == _DEATHS:
                    raise

    async def definition(self, session_id: str, body: bytes) -> str | None:
        """The definition of the loss that a binary `forward_backward` body asks for.

        None if it asks for a loss of the API. Raises `BadRequest`, and `OpError` if the session has
        no such loss.
        """
        loss_id = tinker.custom_loss_id(body)
        if loss_id is None:
            return None
        row = await self._db.call(lambda db: db.get(CustomLossRow, loss_id))
        if row is None or row.session_id != session_id:
            raise ops.OpError(
                f"This session has no custom loss {loss_id[:100]!r}; create it with "
                "create_custom_loss, in the session that uses it."
            )
        return row.definition.decode(errors="replace")
