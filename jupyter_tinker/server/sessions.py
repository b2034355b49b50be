"""Sessions of clients: how they begin, and what ends with them.

Knows nothing of what is asked in a session. How sessions are found again is `session_index`'s.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from ..wire import tinker
from .events import Events
from .lives import Lives
from .registry import Registry
from .run_store import RunStore
from .runs import Run
from .sampling import Sampling
from .schema import SessionRow
from .session_index import SessionIndex


class UnknownSession(LookupError):
    """No session has this id, or it has ended; the message says which."""


class Sessions:
    """All sessions of one server."""

    def __init__(
        self,
        *,
        run_store: RunStore,
        session_index: SessionIndex,
        registry: Registry,
        lives: Lives,
        sampling: Sampling,
        events: Events,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        log: Any,
    ) -> None:
        self._run_store = run_store
        self._session_index = session_index
        self._registry = registry
        self._lives = lives
        self._sampling = sampling
        self._events = events
        self._spawn = spawn
        self._log = log
        self._retiring: set[str] = set()  # ids of runs

    async def create(
        self, body: tinker.CreateSession, owner: str, idempotency_key: str | None
    ) -> str:
        """Returns the new session's id, or the one that the same idempotency key was given."""
        row = SessionRow(
            id=str(uuid.uuid4()),
            created_at=time.time(),
            owner=owner,
            sdk_version=body.sdk_version,
            tags=body.tags,
            user_metadata=body.user_metadata,
            project_id=body.project_id,
            display_name=body.display_name,
            idempotency_key=idempotency_key,
        )
        stored = await self._run_store.add_session(row)
        if stored.id == row.id:
            self._log.info("Session %s of %s, SDK %s", row.id, owner, body.sdk_version or "unknown")
        self._session_index.heard_of(stored.id)
        return stored.id

    async def get(self, session_id: str) -> SessionRow:
        """Raises `UnknownSession`."""
        row = await self._run_store.session(session_id)
        if row is None:
            raise UnknownSession(f"There is no session {session_id[:200]!r}.")
        return row

    async def live(self, session_id: str) -> SessionRow:
        """A session that has not ended. Raises `UnknownSession`."""
        row = await self.get(session_id)
        if row.finished_at is not None:
            raise UnknownSession(f"Session {session_id} has ended; create a new ServiceClient.")
        return row

    async def finish(self, session_id: str, body: tinker.Finish) -> None:
        """End a session: its runs do what they have accepted and leave the engine, and its samplers
        leave it at once. Raises `UnknownSession`."""
        await self.get(session_id)
        await self._run_store.finish_session(session_id, body.reason.type, body.detail)
        await self._sampling.end_session(session_id)
        await self.retire_runs()

    async def retire_runs(self) -> None:
        """End the runs whose sessions have ended; an earlier life may not have come to it."""
        for run_id in await self._run_store.unended_runs():
            if run_id not in self._retiring:
                self._retiring.add(run_id)
                self._spawn(self._retire(await self._registry.get(run_id)))

    async def _retire(self, run: Run) -> None:
        reason = f"The session of run {run.id} has ended."
        await self._registry.drained(run)
        async with run.lock:
            run.end(reason)
            await self._run_store.update_run(run.id, ended=reason)
            await self._events.emit(run.id, "run_ended", step=run.step, reason=reason)
            await self._lives.unload(run)
        await self._sampling.end_run(run.id, reason)
