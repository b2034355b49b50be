"""What is remembered of sessions and their runs, of steps, and of what else happened to runs.

Knows nothing of requests. A new run is stored by the journal, with the request that creates it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from .database import Database
from .schema import EventRow, RunRow, SessionRow, StepRow
from .session_index import in_projects


class RunStore:
    """The database's memory of sessions, runs and steps."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # Sessions

    async def add_session(self, row: SessionRow) -> SessionRow:
        """Store a session; one with the same idempotency key is returned instead."""

        def work(db: Session) -> SessionRow:
            if row.idempotency_key:
                known = select(SessionRow).where(SessionRow.idempotency_key == row.idempotency_key)
                found = db.scalars(known).first()
                if found is not None:
                    return found
            db.add(row)
            return row

        return await self._db.call(work)

    async def session(self, session_id: str) -> SessionRow | None:
        return await self._db.call(lambda db: db.get(SessionRow, session_id))

    async def tags(self, session_ids: Sequence[str]) -> dict[str, list[str]]:
        """The tags of sessions, by their ids."""
        query = select(SessionRow.id, SessionRow.tags).where(SessionRow.id.in_(session_ids))
        return await self._db.call(lambda db: {row.id: row.tags for row in db.execute(query)})

    async def finish_session(self, session_id: str, reason: str, detail: str | None) -> None:
        """The first reason stays."""
        await self._db.call(
            lambda db: db.execute(
                update(SessionRow)
                .where(SessionRow.id == session_id, SessionRow.finished_at.is_(None))
                .values(finished_at=time.time(), finish_reason=reason, finish_detail=detail)
            )
        )

    async def sessions(self, limit: int, offset: int) -> list[str]:
        """Ids, newest first."""
        query = select(SessionRow.id).order_by(SessionRow.created_at.desc(), SessionRow.id.desc())
        return await self._db.call(lambda db: list(db.scalars(query.limit(limit).offset(offset))))

    # Runs

    async def update_run(self, run_id: str, **values: Any) -> None:
        await self._db.call(
            lambda db: db.execute(update(RunRow).where(RunRow.id == run_id).values(**values))
        )

    async def unended_runs(self) -> list[str]:
        """The ids of the runs that have not ended although their sessions have."""
        over = select(SessionRow.id).where(SessionRow.finished_at.is_not(None))
        query = select(RunRow.id).where(
            RunRow.session_id.in_(over), RunRow.ended.is_(None), RunRow.copied_from.is_(None)
        )
        return await self._db.call(lambda db: list(db.scalars(query)))

    async def run(self, run_id: str) -> RunRow | None:
        return await self._db.call(lambda db: db.get(RunRow, run_id))

    async def runs(
        self,
        limit: int,
        offset: int,
        session_id: str | None = None,
        project_id: str | None = None,
        *,
        live: bool = False,
    ) -> tuple[list[RunRow], int]:
        """A page of runs, newest first, and how many there are. `live`: of those that have not
        ended, the one that was asked for something last first."""
        chosen: list[ColumnElement[bool]] = []
        if live:
            chosen += [RunRow.ended.is_(None), RunRow.copied_from.is_(None)]
        if session_id is not None:
            chosen.append(RunRow.session_id == session_id)
        if project_id is not None:
            sessions = select(SessionRow.id).where(in_projects([project_id]))
            chosen.append(RunRow.session_id.in_(sessions))
        time = RunRow.last_request_at if live else RunRow.created_at
        query = select(RunRow).where(*chosen).order_by(time.desc(), RunRow.id.desc())

        def work(db: Session) -> tuple[list[RunRow], int]:
            total = db.scalar(select(func.count()).select_from(RunRow).where(*chosen)) or 0
            return list(db.scalars(query.limit(limit).offset(offset))), total

        return await self._db.call(work)

    # Steps

    async def steps(self, run_id: str, after: int, limit: int) -> list[StepRow]:
        """A run's steps with an id above `after`, oldest first."""
        query = (
            select(StepRow)
            .where(StepRow.run_id == run_id, StepRow.id > after)
            .order_by(StepRow.id)
            .limit(limit)
        )
        return await self._db.call(lambda db: list(db.scalars(query)))

    async def run_events(self, run_id: str, after: int, limit: int) -> list[EventRow]:
        """What else happened to a run, with an id above `after`, oldest first."""
        query = (
            select(EventRow)
            .where(EventRow.run_id == run_id, EventRow.id > after)
            .order_by(EventRow.id)
            .limit(limit)
        )
        return await self._db.call(lambda db: list(db.scalars(query)))

    async def last_steps(self, run_ids: Sequence[str]) -> dict[str, StepRow]:
        """The newest step of each run that has made one."""
        newest = (
            select(func.max(StepRow.id)).where(StepRow.run_id.in_(run_ids)).group_by(StepRow.run_id)
        )
        query = select(StepRow).where(StepRow.id.in_(newest))
        return await self._db.call(lambda db: {row.run_id: row for row in db.scalars(query)})
