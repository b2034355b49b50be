"""Reads events and steps from the database, as one sequence in the order of their ids."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from sqlalchemy import Row, Select, Table, func, select, union_all
from sqlalchemy.orm import Session

from ..wire.events import Event, encode
from .event_ring import Encoded
from .schema import EventRow, StepRow

_STEPS: Table = StepRow.metadata.tables[StepRow.__tablename__]
_EVENTS: Table = EventRow.metadata.tables[EventRow.__tablename__]
_NEWEST = select(*(select(func.max(t.c.id)).scalar_subquery() for t in (_STEPS, _EVENTS)))


def newest(db: Session) -> int:
    """The largest id of all events and steps; 0 where there are none."""
    return max(found or 0 for found in db.connection().execute(_NEWEST).one())


def page(db: Session, after: int, upto: int, runs: Set[str] | None, limit: int) -> list[Encoded]:
    """The first `limit` events with an id above `after` and none above `upto`, encoded: of all
    runs, or of these and of no run at all."""
    ids = _ids(db, after, upto, runs, limit)
    steps = db.execute(select(_STEPS).where(_STEPS.c.id.in_(ids)))
    others = db.execute(select(_EVENTS).where(_EVENTS.c.id.in_(ids)))
    found = [*map(_of_step, steps), *(Event(**row._mapping) for row in others)]
    found.sort(key=lambda event: event.id)
    return [Encoded(event.id, event.run_id, encode(event)) for event in found]


def _ids(db: Session, after: int, upto: int, runs: Set[str] | None, limit: int) -> list[int]:
    def part(table: Table) -> Select[tuple[int]]:
        return select(table.c.id).where(table.c.id > after, table.c.id <= upto)

    # A part for each run, rather than one for all: then an index has each in order, and the
    # database merges them only as far as the limit, however long the histories are.
    parts = [part(table) for table in (_STEPS, _EVENTS)]
    if runs is not None:
        parts = [
            part(table).where(table.c.run_id == run)
            for table in (_STEPS, _EVENTS)
            for run in sorted(runs)
        ]
        parts.append(part(_EVENTS).where(_EVENTS.c.run_id.is_(None)))
    return list(db.scalars(union_all(*parts).order_by("id").limit(limit)))


def of_step(row: StepRow) -> Event:
    """A step as watchers are told of it."""
    data = {column.name: getattr(row, column.name) for column in _STEPS.columns}
    return Event(row.id, row.run_id, row.time, "step", None, row.step, data)


def _of_step(row: Row[Any]) -> Event:
    return Event(row.id, row.run_id, row.time, "step", None, row.step, dict(row._mapping))
