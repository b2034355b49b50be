"""How much of the past is kept: the bytes that runs' histories take, and what goes first.

A history is snapshots and the payloads of operations. Steps, controls and events stay for good, and
so do checkpoints, which are their owner's. Nothing is dropped without a word.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from .audit import THE_SERVER, note
from .database import Database
from .events import Events
from .history import place_of
from .schema import OperationRow, PayloadRow, RequestRow, RunRow, SnapshotRow
from .snapshots import unlink

_AT_ONCE = 500


@dataclass(frozen=True)
class Size:
    """What the history of a run takes."""

    run_id: str
    snapshots: int  # bytes
    payloads: int  # bytes

    @property
    def total(self) -> int:
        return self.snapshots + self.payloads


class Retention:
    """Drops what is too old, or too much."""

    def __init__(self, database: Database, snapshots: Path, events: Events, *, log: Any) -> None:
        self._db = database
        self._snapshots = snapshots  # their directory
        self._events = events
        self._log = log
        self._warned = False

    async def keep_within(self, budget: int, busy: Iterable[str] = ()) -> None:
        """Drop history until it takes at most `budget` bytes: the past of the run that was used
        least recently first, and of runs that have ended all. Of `busy` runs nothing is dropped."""
        total = sum(size.total for size in await self._db.call(sizes))
        spared = set(busy)
        for whole in (False, True):
            for run_id in await self._db.call(partial(_oldest, ended=whole)):
                if total <= budget:
                    self._warned = False
                    return
                if run_id not in spared:
                    total -= await self.drop(run_id, whole=whole)
        if total > budget and not self._warned:
            self._warned = True
            self._log.warning(
                "The histories of runs take %.1f GB, more than TinkerExtension.history_bytes "
                "(%.1f GB), and what is left is needed to revive them; raise it, or end runs.",
                total / 1e9,
                budget / 1e9,
            )

    async def unused_since(self, moment: float) -> list[Size]:
        """Runs with a history that nobody has asked anything of since then, and that owe nothing;
        the one used least recently first."""
        return await self._db.call(lambda db: _unused_since(db, moment))

    async def drop(self, run_id: str, *, whole: bool, by: str = THE_SERVER) -> int:
        """Drop a run's past, or its whole history, with which it ends; returns the bytes."""
        return await self._dropped(run_id, whole, lambda db: self._drop(db, run_id, whole, by))

    async def drop_unused(self, run_id: str, moment: float, *, by: str) -> int:
        """Drop a run's whole history, unless something was asked of it since then; the bytes."""

        def work(db: Session) -> tuple[int, list[SnapshotRow]]:
            if run_id not in {size.run_id for size in _unused_since(db, moment)}:
                return 0, []
            return self._drop(db, run_id, True, by)

        return await self._dropped(run_id, True, work)

    async def _dropped(
        self, run_id: str, whole: bool, work: Callable[[Session], tuple[int, list[SnapshotRow]]]
    ) -> int:
        freed, files = await self._db.call(work)
        await asyncio.to_thread(unlink, [self._snapshots / row.file for row in files])
        if freed:
            left = "nothing" if whole else "what it is now"
            self._log.warning(
                "Run %s: %d bytes of its history were dropped; %s is left.", run_id, freed, left
            )
        return freed

    def _drop(
        self, db: Session, run_id: str, whole: bool, by: str
    ) -> tuple[int, list[SnapshotRow]]:
        before = next(iter(sizes(db, run_id)), Size(run_id, 0, 0)).total
        gone, payloads = _all(db, run_id) if whole else _past(db, run_id)
        for row in gone:
            db.delete(row)
        for start in range(0, len(payloads), _AT_ONCE):
            some = PayloadRow.request_id.in_(payloads[start : start + _AT_ONCE])
            db.execute(delete(PayloadRow).where(some))
        db.flush()
        freed = before - next(iter(sizes(db, run_id)), Size(run_id, 0, 0)).total
        if freed:
            kept = "nothing" if whole else "head"
            note(db, "run_history_dropped", by, run_id=run_id, size_bytes=freed, kept=kept)
            self._events.record(db, run_id, "history_trimmed", bytes=freed, kept=kept)
        if whole:
            still = update(RunRow).where(RunRow.id == run_id, RunRow.ended.is_(None))
            db.execute(still.values(ended=DROPPED))
        return freed, gone


DROPPED = (
    "The history of this run was dropped, so it computes no more; start a new client from its last "
    "checkpoint."
)


def sizes(db: Session, run_id: str | None = None) -> list[Size]:
    """What the histories of all runs take, or of one."""
    taken: dict[str, list[int]] = {}
    bytes_of = (
        (SnapshotRow.run_id, SnapshotRow.size_bytes),
        (PayloadRow.run_id, func.length(PayloadRow.body)),
    )
    for column, (owner, size) in enumerate(bytes_of):
        query = select(owner, func.sum(size)).group_by(owner)
        if run_id is not None:
            query = query.where(owner == run_id)
        for name, total in db.execute(query):
            taken.setdefault(name, [0, 0])[column] = total
    return [Size(name, *both) for name, both in taken.items()]


def _unused_since(db: Session, moment: float) -> list[Size]:
    owing = select(RequestRow.run_id).where(RequestRow.done_at.is_(None))
    query = select(RunRow.id).where(RunRow.last_request_at < moment, RunRow.id.not_in(owing))
    taken = {size.run_id: size for size in sizes(db)}
    ids = db.scalars(query.order_by(RunRow.last_request_at))
    return [taken[run_id] for run_id in ids if run_id in taken]


def _oldest(db: Session, *, ended: bool) -> list[str]:
    query = select(RunRow.id).order_by(RunRow.last_request_at)
    if ended:
        query = query.where(RunRow.ended.is_not(None))
    with_history = {size.run_id for size in sizes(db)}
    return [run_id for run_id in db.scalars(query) if run_id in with_history]


def _all(db: Session, run_id: str) -> tuple[list[SnapshotRow], list[str]]:
    snapshots = list(db.scalars(select(SnapshotRow).where(SnapshotRow.run_id == run_id)))
    return snapshots, _payloads(db, run_id)


def _past(db: Session, run_id: str) -> tuple[list[SnapshotRow], list[str]]:
    """What is not needed to make the run's present state."""
    snapshots = list(db.scalars(select(SnapshotRow).where(SnapshotRow.run_id == run_id)))
    place = place_of(db, run_id)
    spans = place.lineage(place.head)
    present = [r for r in snapshots if any(a <= r.position <= b for a, b in spans)]
    if not present:
        return [], []
    newest = max(present, key=lambda row: row.position)
    needed = set(
        db.scalars(
            select(OperationRow.request_id).where(
                OperationRow.run_id == run_id,
                OperationRow.position > newest.position,
                OperationRow.request_id.is_not(None),
            )
        )
    )
    payloads = [request for request in _payloads(db, run_id) if request not in needed]
    return [row for row in snapshots if row is not newest], payloads


def _payloads(db: Session, run_id: str) -> list[str]:
    """Of requests that are done."""
    query = (
        select(PayloadRow.request_id)
        .join(RequestRow, RequestRow.id == PayloadRow.request_id)
        .where(PayloadRow.run_id == run_id, RequestRow.done_at.is_not(None))
    )
    return list(db.scalars(query))
