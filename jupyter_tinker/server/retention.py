"""How much of the past is kept: the bytes that runs' histories take, and what goes first.

A history is snapshots and the payloads of operations. Steps, controls and events stay for good, and
so do checkpoints, which are their owner's. Nothing is dropped without a word.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Container
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.orm import Session

from .audit import THE_SERVER, note
from .database import Database
from .events import Events
from .history import place_of
from .schema import OperationRow, PayloadRow, RequestRow, RunRow, SnapshotRow
from .snapshots import unlink

_AT_ONCE = 500
_SLACK = 20  # the part of the budget that is freed beyond, so that it lasts for a while

# Keeps a run as it is for the length of a block; whether it could.
Hold = Callable[[str], AbstractAsyncContextManager[bool]]


@dataclass(frozen=True)
class Size:
    """What the history of a run takes."""

    run_id: str
    snapshots: int  # bytes
    payloads: int  # bytes

    @property
    def total(self) -> int:
        return self.snapshots + self.payloads


Kept = Literal["nothing", "head", "recent"]
_LEFT: dict[Kept, str] = {
    "nothing": "nothing",
    "head": "what it is now",
    "recent": "what came last",
}


@dataclass(frozen=True)
class _Part:
    """Of a run's history."""

    snapshots: list[SnapshotRow]
    payloads: list[str]  # by their requests
    kept: Kept = "recent"  # once it is gone


@asynccontextmanager
async def _unlocked(_: str) -> AsyncIterator[bool]:
    yield True


class Retention:
    """Drops what is too old, or too much."""

    def __init__(self, database: Database, snapshots: Path, events: Events, *, log: Any) -> None:
        self._db = database
        self._snapshots = snapshots  # their directory
        self._events = events
        self._log = log
        self._warned = False

    async def keep_within(self, budget: int, hold: Hold = _unlocked) -> None:
        """Where histories take more than `budget` bytes, drop some until it is a little less: the
        oldest of the run that was used least recently first, and of runs that have ended all.

        `hold` keeps a run as it is for the length of a block, and says whether that is so.
        """
        total = sum(size.total for size in await self._db.call(sizes))
        goal = budget if total <= budget else budget - budget // _SLACK
        for whole in (False, True):
            for run_id in await self._db.call(partial(_oldest, ended=whole)):
                if total <= goal:
                    self._warned = False
                    return
                async with hold(run_id) as held:
                    if held:
                        most = None if whole else total - goal
                        total -= await self._drop(run_id, partial(_part, most=most))
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

    async def drop(self, run_id: str, *, by: str = THE_SERVER) -> int:
        """Drop a run's whole history, with which it ends; returns the bytes."""
        return await self._drop(run_id, partial(_part, most=None), by=by)

    async def drop_unused(self, run_id: str, moment: float, *, by: str) -> int:
        """`drop`, unless something was asked of the run since then."""

        def part(db: Session, run_id: str) -> _Part:
            used = run_id not in {size.run_id for size in _unused_since(db, moment)}
            return _Part([], []) if used else _part(db, run_id, most=None)

        return await self._drop(run_id, part, by=by)

    async def _drop(
        self, run_id: str, choose: Callable[[Session, str], _Part], *, by: str = THE_SERVER
    ) -> int:
        def work(db: Session) -> tuple[int, _Part]:
            part = choose(db, run_id)
            return self._remove(db, run_id, part, by), part

        freed, part = await self._db.call(work)
        await asyncio.to_thread(unlink, [self._snapshots / row.file for row in part.snapshots])
        if freed:
            self._log.warning(
                "Run %s: %d bytes of its history were dropped; %s is left.",
                run_id,
                freed,
                _LEFT[part.kept],
            )
        return freed

    def _remove(self, db: Session, run_id: str, part: _Part, by: str) -> int:
        before = _total(db, run_id)
        for row in part.snapshots:
            db.delete(row)
        for start in range(0, len(part.payloads), _AT_ONCE):
            some = PayloadRow.request_id.in_(part.payloads[start : start + _AT_ONCE])
            db.execute(delete(PayloadRow).where(some))
        db.flush()
        freed, kept = before - _total(db, run_id), part.kept
        if freed:
            note(db, "run_history_dropped", by, run_id=run_id, size_bytes=freed, kept=kept)
            self._events.record(db, run_id, "history_trimmed", bytes=freed, kept=kept)
        if kept == "nothing":
            still = update(RunRow).where(RunRow.id == run_id, RunRow.ended.is_(None))
            db.execute(still.values(ended=DROPPED))
        return freed


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


def _total(db: Session, run_id: str) -> int:
    return sum(size.total for size in sizes(db, run_id))


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


def _part(db: Session, run_id: str, *, most: int | None) -> _Part:
    """What goes of a run's history: at least `most` bytes of its past if it has them, and not much
    more; None: all.

    The past is spans, of a snapshot and what was done until the next. The oldest goes first, and
    within a span its end: what can be made of the snapshot is left until that itself goes.
    """
    snapshots = list(db.scalars(select(SnapshotRow).where(SnapshotRow.run_id == run_id)))
    if most is None:
        return _Part(snapshots, list(_payloads(db, run_id)), "nothing")
    begins = sorted(row.position for row in snapshots)
    needed = _needed(db, run_id, snapshots)
    past: list[tuple[tuple[int, int], int, SnapshotRow | str]] = []
    for row in snapshots:
        if row.position not in needed:
            past.append(((bisect_right(begins, row.position), 0), row.size_bytes, row))
    for request_id, (position, size) in _payloads(db, run_id).items():
        if position not in needed:
            past.append(((bisect_left(begins, position), -position), size, request_id))
    part = _Part([], [], "recent")
    for _, size, item in sorted(past, key=lambda each: each[0]):
        if most <= 0:
            return part
        most -= size
        if isinstance(item, str):
            part.payloads.append(item)
        else:
            part.snapshots.append(item)
    return replace(part, kept="head")


def _needed(db: Session, run_id: str, snapshots: list[SnapshotRow]) -> Container[int]:
    """The positions of what makes the run's present state."""
    place = place_of(db, run_id)
    spans = [range(first, last + 1) for first, last in place.lineage(place.head)]
    present = [r.position for r in snapshots if any(r.position in span for span in spans)]
    newest = max(present, default=0)
    return {place for span in spans for place in range(max(span.start, newest), span.stop)}


def _payloads(db: Session, run_id: str) -> dict[str, tuple[int, int]]:
    """Position and bytes of each payload of requests that are done, by their ids."""
    query = (
        select(PayloadRow.request_id, OperationRow.position, func.length(PayloadRow.body))
        .join(RequestRow, RequestRow.id == PayloadRow.request_id)
        .join(
            OperationRow,
            and_(
                OperationRow.run_id == PayloadRow.run_id,
                OperationRow.request_id == PayloadRow.request_id,
            ),
            isouter=True,
        )
        .where(PayloadRow.run_id == run_id, RequestRow.done_at.is_not(None))
    )
    return {id: (position or 0, size) for id, position, size in db.execute(query)}
