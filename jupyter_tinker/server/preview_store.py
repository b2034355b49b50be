"""What runs are asked while they train, and what they answered, as the database keeps it.

Answers are events, so that whoever watches a run has them. Knows nothing of sampling.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from ..wire.previews import Preview
from .backlog import Backlog
from .database import Database
from .events import Events
from .schema import EventRow, PreviewRow

MOST_ROUNDS = 200  # kept of a run; beyond, every other one of the older half is dropped


@dataclass(frozen=True)
class Setting:
    """What a run is asked, and who said so; nobody has yet, where there is no time."""

    preview: Preview
    changed_at: float | None = None
    changed_by: str | None = None

    def to_json(self) -> dict[str, Any]:
        who = {"changed_at": self.changed_at, "changed_by": self.changed_by}
        return {**self.preview.model_dump(), **who}


_NONE = Setting(Preview())


class PreviewStore:
    """Settings of all runs, read once and then known, and the answers that are kept."""

    def __init__(self, database: Database, backlog: Backlog, events: Events) -> None:
        self._db = database
        self._backlog = backlog
        self._events = events
        self._settings: dict[str, Setting] | None = None  # by run

    async def setting(self, run_id: str) -> Setting:
        if self._settings is None:
            rows = await self._db.call(lambda db: list(db.scalars(select(PreviewRow))))
            if self._settings is None:  # nobody was faster
                self._settings = {row.run_id: _setting(row) for row in rows}
        return self._settings.get(run_id, _NONE)

    async def change(self, run_id: str, preview: Preview, *, step: int, by: str) -> None:
        """Store a setting, and tell of it; one that changes nothing is left alone."""
        if (await self.setting(run_id)).preview == preview:
            return
        now, setting = time.time(), preview.model_dump()
        assert self._settings is not None
        self._settings[run_id] = Setting(preview, now, by)

        def work(db: Session) -> None:
            db.merge(PreviewRow(run_id=run_id, setting=setting, changed_at=now, changed_by=by))
            self._events.record(db, run_id, "preview_changed", actor=by, step=step, **setting)

        await self._backlog.put(work)

    async def add_round(self, run_id: str, *, step: int, by: str | None, **data: Any) -> None:
        """Keep what came of a preview, and tell of it, behind all that was done before."""

        def work(db: Session) -> None:
            self._events.record(db, run_id, "preview_sampled", actor=by, step=step, **data)
            _thin(db, run_id)

        await self._backlog.put(work)

    async def rounds(self, run_id: str, after: int, limit: int) -> list[EventRow]:
        """A run's rounds with an id above `after`, oldest first."""
        query = _rounds(run_id).where(EventRow.id > after).limit(limit)
        return await self._db.call(lambda db: list(db.scalars(query)))


def _setting(row: PreviewRow) -> Setting:
    return Setting(Preview.model_validate(row.setting), row.changed_at, row.changed_by)


def _rounds(run_id: str) -> Any:
    of_run = select(EventRow).where(EventRow.run_id == run_id, EventRow.kind == "preview_sampled")
    return of_run.order_by(EventRow.id)


def _thin(db: Session, run_id: str) -> None:
    ids = [row_id for (row_id,) in db.execute(_rounds(run_id).with_only_columns(EventRow.id))]
    if len(ids) > MOST_ROUNDS:
        # The very first stays, and the newest half: the further back, the fewer.
        dropped = ids[1 : len(ids) // 2 : 2]
        db.execute(delete(EventRow).where(EventRow.id.in_(dropped)))
