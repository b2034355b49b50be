"""What is remembered of requests: each that was accepted, and what became of its result.

A request is written here before the client learns its id. Nothing here knows of HTTP or the engine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, bindparam, delete, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from . import payloads
from .backlog import Work
from .database import Database, insert_row
from .schema import OperationRow, PayloadRow, RequestRow, RunRow

JSON_TYPE = "application/json"
PROTOBUF_TYPE = "application/x-protobuf"
_AT_ONCE = 500  # ids in one statement; databases bound their number
_KEPT_BATCHES = 16  # results of forward_backward that are kept of each run, whoever fetched them


# What every request needs, made once: to put a statement together takes longer than to execute it.
_OF_NUMBER = select(RequestRow.id).where(
    RequestRow.run_id == bindparam("run"), RequestRow.seq_id == bindparam("number")
)
_DONE = (
    update(RequestRow)
    .where(RequestRow.id == bindparam("request"))
    .values({name: bindparam(name) for name in ("done_at", "result", "content_type", "failed")})
)
_USED = update(RunRow).where(RunRow.id == bindparam("run"))
_USED = _USED.values(last_request_at=bindparam("now"))
_LET_GO = delete(PayloadRow).where(PayloadRow.request_id == bindparam("request"))
_NOT_DONE = delete(OperationRow).where(
    OperationRow.run_id == bindparam("run"), OperationRow.position == bindparam("place")
)


@dataclass(frozen=True)
class Result:
    """How a request ended: the body `retrieve_future` answers with."""

    body: bytes
    content_type: str = JSON_TYPE
    failed: bool = False


@dataclass(frozen=True)
class StoredFuture:
    """A future as the database has it; `result` is None while pending or once dropped."""

    run_id: str
    kind: str
    server: str
    done: bool
    result: Result | None


@dataclass(frozen=True)
class Completion:
    """A request that is over: with a result of so many bytes, or failed."""

    request_id: str
    size: int | None


class Journal:
    """The database's memory of requests and results.

    `server` names this life of the server; what an earlier life left pending is known by it.
    """

    def __init__(self, database: Database, server: str) -> None:
        self._db = database
        self.server = server

    # Requests

    async def add_run(self, row: RunRow, request: RequestRow, payload: bytes) -> str:
        """Store a run together with the request that creates it; returns that request's id.

        A run that exists already is left alone, and the id its creation had is returned.
        """

        def work(db: Session) -> str:
            if db.get(RunRow, row.id) is None:
                db.add(row)
            return _add_once(db, request, payload)

        return await self._db.call(work)

    async def add_request(self, request: RequestRow, payload: bytes) -> str:
        """Store a request and return its id, or the id that its `(run, seq_id)` has already."""
        return await self._db.call(lambda db: _add_once(db, request, payload))

    async def pending(self, run_id: str) -> list[tuple[RequestRow, bytes]]:
        """What of a run is accepted and not done, in its order, with the payloads."""
        query = (
            select(RequestRow, PayloadRow.body)
            .join(PayloadRow, PayloadRow.request_id == RequestRow.id)
            .where(RequestRow.run_id == run_id, RequestRow.done_at.is_(None))
            .order_by(RequestRow.seq_id)
        )
        return await self._db.call(lambda db: [(row, body) for row, body in db.execute(query)])

    async def owners_of_pending(self, kinds: Sequence[str]) -> list[str]:
        """The ids of runs, or of sessions, that have requests of these kinds that are not done."""
        query = (
            select(RequestRow.run_id)
            .where(RequestRow.done_at.is_(None), RequestRow.kind.in_(kinds))
            .distinct()
        )
        return await self._db.call(lambda db: list(db.scalars(query)))

    async def next_seq_id(self, run_id: str) -> int:
        """The number that a run's first request that is not done has, or will have."""
        query = select(func.max(RequestRow.seq_id)).where(
            RequestRow.run_id == run_id, RequestRow.done_at.is_not(None)
        )
        last = await self._db.call(lambda db: db.scalar(query))
        return 0 if last is None else last + 1

    # Results

    def completion(
        self,
        request_id: str,
        run_id: str,
        result: Result,
        *,
        operation: OperationRow | None = None,
        records: Sequence[Work] = (),
    ) -> Work:
        """Stores a result, with the change it made to its run and what watchers are told of it.

        The payload is let go of, unless the change was made of it.
        """
        now = time.time()
        end = {
            "request": request_id,
            "done_at": now,
            "result": result.body,
            "content_type": result.content_type,
            "failed": result.failed,
        }

        def work(db: Session) -> None:
            execute = db.connection().execute
            execute(_DONE, end)
            execute(_USED, {"run": run_id, "now": now})
            if operation is None or operation.request_id is None:
                execute(_LET_GO, {"request": request_id})
            if operation is not None:
                execute(_NOT_DONE, {"run": operation.run_id, "place": operation.position})
                insert_row(db, operation)
            for record in records:
                record(db)

        return work

    async def future(self, request_id: str) -> StoredFuture | None:
        def work(db: Session) -> StoredFuture | None:
            row = db.get(RequestRow, request_id)
            if row is None:
                return None
            result = None
            if row.result is not None and row.content_type is not None:
                result = Result(row.result, row.content_type, row.failed)
            done = row.done_at is not None
            return StoredFuture(row.run_id, row.kind, row.server, done, result)

        return await self._db.call(work)

    async def mark_retrieved(self, request_ids: Sequence[str]) -> None:
        """Start the hour after which these results are dropped."""

        def work(db: Session) -> None:
            for start in range(0, len(request_ids), _AT_ONCE):
                chosen = RequestRow.id.in_(request_ids[start : start + _AT_ONCE])
                fresh = RequestRow.retrieved_at.is_(None)
                change = update(RequestRow).where(chosen, fresh)
                db.execute(change.values(retrieved_at=time.time()))

        await self._db.call(work)

    async def drop_results(self, retrieved_before: float, done_before: float = 0.0) -> None:
        """Let go of results that were fetched before a time, or made before another, whether or not
        anybody came for them; their rows stay. The last that a run was trained on are kept, to be
        looked into."""
        old = (RequestRow.retrieved_at < retrieved_before) | (RequestRow.done_at < done_before)
        query = select(RequestRow.id).where(old, RequestRow.result.is_not(None))

        def work(db: Session) -> None:
            ids = list(db.scalars(query.where(~_is_among_the_last_of_its_run())))
            for start in range(0, len(ids), _AT_ONCE):
                chosen = RequestRow.id.in_(ids[start : start + _AT_ONCE])
                db.execute(update(RequestRow).where(chosen).values(result=None))

        await self._db.call(work)

    async def abandon(self, request_id: str) -> None:
        """A request that is over and has no result."""
        change = update(RequestRow).where(RequestRow.id == request_id)

        def work(db: Session) -> None:
            db.execute(change.values(done_at=time.time(), failed=True))
            db.execute(delete(PayloadRow).where(PayloadRow.request_id == request_id))

        await self._db.call(work)

    async def forget(self, run_id: str, request_ids: Sequence[str]) -> None:
        """Drop results of a run or a sampling session at once."""

        def work(db: Session) -> None:
            for start in range(0, len(request_ids), _AT_ONCE):
                chosen = RequestRow.id.in_(request_ids[start : start + _AT_ONCE])
                of_run = RequestRow.run_id == run_id
                done = RequestRow.done_at.is_not(None)
                change = update(RequestRow).where(chosen, of_run, done)
                db.execute(change.values(retrieved_at=time.time(), result=None))

        if request_ids:
            await self._db.call(work)

    async def unfetched(self, run_id: str, seq_ids: range) -> list[Completion]:
        """What of these requests is over and was never fetched, oldest first; so is what an earlier
        life of the server left pending."""
        over = RequestRow.done_at.is_not(None) | (RequestRow.server != self.server)
        size = func.length(RequestRow.result)
        query = (
            select(RequestRow.id, size, RequestRow.failed)
            .where(
                RequestRow.run_id == run_id,
                RequestRow.seq_id.between(seq_ids.start, seq_ids.stop - 1),
                RequestRow.retrieved_at.is_(None),
                over,
            )
            .order_by(RequestRow.done_at)
        )

        def work(db: Session) -> list[Completion]:
            rows = db.execute(query)
            return [Completion(id, None if failed else size) for id, size, failed in rows]

        return await self._db.call(work)


def _is_among_the_last_of_its_run() -> ColumnElement[bool]:
    """Whether a request's data is kept, and that of few of the same run that came later."""
    later, own, others = aliased(RequestRow), aliased(PayloadRow), aliased(PayloadRow)
    newer = (
        select(later.id)
        .join(others, others.request_id == later.id)
        .where(later.run_id == RequestRow.run_id, later.seq_id > RequestRow.seq_id)
        .where(later.kind == "forward_backward", later.result.is_not(None))
        .limit(_KEPT_BATCHES)
        .correlate(RequestRow)
        .subquery()
    )
    return and_(
        RequestRow.kind == "forward_backward",
        exists().where(own.request_id == RequestRow.id),
        select(func.count()).select_from(newer).scalar_subquery() < _KEPT_BATCHES,
    )


def _add_once(db: Session, request: RequestRow, payload: bytes) -> str:
    number = {"run": request.run_id, "number": request.seq_id}
    known: str | None = db.connection().execute(_OF_NUMBER, number).scalar()
    if known is not None:
        return known
    insert_row(db, request)
    payloads.add(db, request.id, request.run_id, payload)
    return request.id
