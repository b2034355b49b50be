"""What was done to each run, in order: enough to make any of its states again.

A run's state at a position is its newest snapshot before, and the operations since. Positions count
its changes; a rewind begins a branch, whose positions follow those of another branch from some
point on. Knows nothing of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, delete, func, or_, select
from sqlalchemy.orm import Session

from .backlog import Backlog, Work
from .database import Database
from .schema import BranchRow, OperationRow, PayloadRow, SnapshotRow

Kind = Literal[
    "create_model",
    "create_via_load",
    "load_weights",
    "forward_backward",
    "optim_step",
    "zero_grad",
    "spoiled",  # changes nothing, but what the next optim_step may do
]
# After these nothing is accumulated: the states that a run can be rewound to, or begins a step in.
BOUNDARIES: tuple[Kind, ...] = (
    "create_model",
    "create_via_load",
    "load_weights",
    "optim_step",
    "zero_grad",
)
_STATES: tuple[Kind, ...] = ("create_model", "create_via_load", "load_weights", "optim_step")
LOADS: tuple[Kind, ...] = ("create_via_load", "load_weights")
_PAGE = 500


class HistoryGone(Exception):
    """What a state was made of is no longer kept; the message says what is."""


@dataclass
class Place:
    """Where a run is in its history."""

    head: int = 0  # position of its state; 0: it has none yet
    last: int = 0  # the highest position on any branch
    branches: list[BranchRow] = field(default_factory=list)  # by number, from 1

    @property
    def branch(self) -> int:
        return len(self.branches)

    def advance(self) -> int:
        """The position of the run's next change, which its state is at from now on."""
        self.last += 1
        self.head = self.last
        return self.head

    def lineage(self, position: int) -> list[tuple[int, int]]:
        """The spans of positions, both ends included, that lead to a position; newest first."""
        spans = []
        for branch in reversed(self.branches):
            if position >= branch.first_position:
                spans.append((branch.first_position, position))
                position = branch.parent_position
        return [*spans, (1, position)]

    def branch_of(self, position: int) -> int:
        """The branch that a position lies on."""
        begun = [b.number for b in self.branches if b.first_position <= position]
        return max(begun, default=0)

    def end_of(self, number: int) -> int:
        """The position that a branch reached before the run left it."""
        if number == self.branch:
            return self.head
        end = self.branches[number].first_position - 1
        own = self.branches[number - 1] if number else None
        return end if own is None or end >= own.first_position else own.parent_position


@dataclass(frozen=True)
class Plan:
    """How to make a state: of a snapshot, or of nothing, and by these operations."""

    snapshot: SnapshotRow | None
    operations: list[OperationRow]

    @property
    def steps(self) -> int:
        return sum(operation.kind == "optim_step" for operation in self.operations)


class History:
    """The histories of all runs."""

    def __init__(self, database: Database, backlog: Backlog) -> None:
        self._db = database
        self._backlog = backlog

    # What was done

    async def place(self, run_id: str) -> Place:
        """Where a run is, by what is stored."""
        return await self._db.call(lambda db: place_of(db, run_id))

    async def branches(self, run_ids: Sequence[str]) -> dict[str, Place]:
        """The branches of those runs that have some, in places that know nothing else."""
        query = select(BranchRow).where(BranchRow.run_id.in_(run_ids)).order_by(BranchRow.number)
        found: dict[str, Place] = {}
        for row in await self._db.call(lambda db: list(db.scalars(query))):
            found.setdefault(row.run_id, Place()).branches.append(row)
        return found

    async def since_boundary(self, run_id: str, place: Place) -> list[OperationRow]:
        """What was done since the last moment at which nothing was accumulated."""
        boundary = await self._last(run_id, place, place.head, OperationRow.kind.in_(BOUNDARIES))
        after = 0 if boundary is None else boundary.position
        return await self._operations(run_id, place, place.head, after)

    async def state_of_step(self, run_id: str, place: Place, step: int, branch: int) -> int:
        """The position right after a step of a branch. Raises `HistoryGone`."""
        await self._backlog.flushed()
        if not 0 <= branch <= place.branch:
            raise HistoryGone(f"Run {run_id} has no branch {branch}.")
        wanted = and_(OperationRow.kind.in_(_STATES), OperationRow.step == step)
        found = await self._last(run_id, place, place.end_of(branch), wanted)
        if found is None:
            raise HistoryGone(f"Run {run_id} has no step {step}.")
        return found.position

    async def step_at(self, run_id: str, position: int) -> int:
        """The optimizer's step at a position; 0 where there is nothing yet."""
        row = await self._db.call(lambda db: db.get(OperationRow, (run_id, position)))
        return 0 if row is None else row.step

    async def loads(self, run_id: str) -> set[int]:
        """Where a checkpoint was loaded, so that what came before says nothing of the state."""
        query = select(OperationRow.position).where(
            OperationRow.run_id == run_id, OperationRow.kind.in_(LOADS)
        )
        return await self._db.call(lambda db: set(db.scalars(query)))

    async def _last(
        self, run_id: str, place: Place, position: int, wanted: ColumnElement[bool]
    ) -> OperationRow | None:
        query = (
            select(OperationRow)
            .where(_within(OperationRow, run_id, place.lineage(position)), wanted)
            .order_by(OperationRow.position.desc())
            .limit(1)
        )
        return await self._db.call(lambda db: db.scalars(query).first())

    async def _operations(
        self, run_id: str, place: Place, position: int, after: int
    ) -> list[OperationRow]:
        query = (
            select(OperationRow)
            .where(
                _within(OperationRow, run_id, place.lineage(position)),
                OperationRow.position > after,
            )
            .order_by(OperationRow.position)
        )
        return await self._db.call(lambda db: list(db.scalars(query)))

    async def recent(self, run_id: str, place: Place, most: int) -> list[OperationRow]:
        """The last operations that led to what a run is now, oldest first; not more than `most`."""
        await self._backlog.flushed()
        query = (
            select(OperationRow)
            .where(_within(OperationRow, run_id, place.lineage(place.head)))
            .order_by(OperationRow.position.desc())
            .limit(most)
        )
        return await self._db.call(lambda db: list(db.scalars(query))[::-1])

    async def kept(self, request_ids: Sequence[str]) -> set[str]:
        """Which of these requests' payloads are still there."""

        def work(db: Session) -> set[str]:
            found: set[str] = set()
            for start in range(0, len(request_ids), _PAGE):
                chosen = PayloadRow.request_id.in_(request_ids[start : start + _PAGE])
                found |= set(db.scalars(select(PayloadRow.request_id).where(chosen)))
            return found

        return await self._db.call(work)

    async def payload(self, request_id: str) -> bytes:
        """What a request asked. Raises `HistoryGone`."""
        row = await self._db.call(lambda db: db.get(PayloadRow, request_id))
        if row is None:
            raise HistoryGone("The data of a step was dropped from the run's history.")
        return row.body

    async def write(self, works: Sequence[Work]) -> None:
        """Do what no request asks for in one transaction, behind all that was done before it."""
        await self._backlog.flushed()
        await self._db.call(lambda db: [work(db) for work in works])

    # Snapshots

    async def add_snapshot(self, row: SnapshotRow) -> None:
        """Store a snapshot's row, behind all that was done before it."""
        await self._backlog.flushed()
        await self._db.call(lambda db: db.merge(row))

    async def snapshots(self, run_id: str) -> list[SnapshotRow]:
        """Oldest position first."""
        query = select(SnapshotRow).where(SnapshotRow.run_id == run_id)
        ordered = query.order_by(SnapshotRow.position)
        return await self._db.call(lambda db: list(db.scalars(ordered)))

    async def has_snapshot(self, row: SnapshotRow) -> bool:
        """Whether a snapshot is still kept."""
        key = (row.run_id, row.position)
        found = await self._db.call(lambda db: db.get(SnapshotRow, key))
        return found is not None and found.sha256 == row.sha256

    async def snapshot_files(self) -> set[str]:
        """Of all runs, below the snapshots' directory."""
        return await self._db.call(lambda db: set(db.scalars(select(SnapshotRow.file))))

    async def drop_snapshots(self, run_id: str, positions: Sequence[int]) -> None:
        chosen = SnapshotRow.position.in_(positions)
        change = delete(SnapshotRow).where(SnapshotRow.run_id == run_id, chosen)
        await self._db.call(lambda db: db.execute(change))

    async def plan(self, run_id: str, place: Place, position: int) -> Plan:
        """The shortest way to the state at a position. Raises `HistoryGone`."""
        await self._backlog.flushed()
        query = (
            select(SnapshotRow)
            .where(_within(SnapshotRow, run_id, place.lineage(position)))
            .order_by(SnapshotRow.position.desc())
            .limit(1)
        )
        snapshot = await self._db.call(lambda db: db.scalars(query).first())
        after = 0 if snapshot is None else snapshot.position
        operations = await self._operations(run_id, place, position, after)
        await self._check_payloads(run_id, [o for o in operations if o.request_id is not None])
        return Plan(snapshot, operations)

    async def _check_payloads(self, run_id: str, operations: list[OperationRow]) -> None:
        ids = [operation.request_id for operation in operations]
        if not ids:
            return

        def work(db: Session) -> int:
            return sum(
                db.scalar(
                    select(func.count())
                    .select_from(PayloadRow)
                    .where(PayloadRow.request_id.in_(ids[start : start + _PAGE]))
                )
                or 0
                for start in range(0, len(ids), _PAGE)
            )

        if await self._db.call(work) < len(ids):
            raise HistoryGone(
                f"Run {run_id} cannot be brought back to this point: the data of its steps was "
                "dropped to keep within TinkerExtension.history_bytes. "
                + await self._what_is_kept(run_id)
            )

    async def _what_is_kept(self, run_id: str) -> str:
        steps = sorted({row.step for row in await self.snapshots(run_id)})
        if not steps:
            return "Nothing of it is left but its checkpoints."
        return f"Snapshots are kept of step {', '.join(map(str, steps[-20:]))}."


def place_of(db: Session, run_id: str) -> Place:
    """Where a run is, by what is stored."""
    of_run = OperationRow.run_id == run_id
    last = db.scalar(select(func.max(OperationRow.position)).where(of_run)) or 0
    own = BranchRow.run_id == run_id
    branches = list(db.scalars(select(BranchRow).where(own).order_by(BranchRow.number)))
    head = last
    if branches and branches[-1].first_position > last:
        head = branches[-1].parent_position
    return Place(head, last, branches)


def operation(
    run_id: str,
    position: int,
    kind: Kind,
    step: int,
    *,
    request_id: str | None = None,
    **data: Any,
) -> OperationRow:
    return OperationRow(
        run_id=run_id,
        position=position,
        kind=kind,
        step=step,
        request_id=request_id,
        data=data,
        time=time.time(),
    )


def _within(
    table: type[OperationRow] | type[SnapshotRow], run_id: str, spans: list[tuple[int, int]]
) -> ColumnElement[bool]:
    return and_(
        table.run_id == run_id,
        or_(*(table.position.between(first, last) for first, last in spans)),
    )
