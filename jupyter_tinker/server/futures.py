"""Futures: what was accepted and what became of it; in memory while fresh, then in the journal."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..wire.ops import Category
from .backlog import Backlog, Work
from .journal import Journal, Result
from .schema import OperationRow, RequestRow

_log = logging.getLogger(__name__)

# Results kept in memory beside the journal, so that the usual fetch does not ask the database.
_MEMORY_BYTES = 64 * 2**20
_PATIENCE = 10.0  # seconds, with a database that cannot be written at the end


def success(value: dict[str, Any]) -> Result:
    return Result(json.dumps(value).encode())


def failure(message: str, category: Category) -> Result:
    """A failed future as the SDK reads it."""
    body = json.dumps({"error": message, "category": category}).encode()
    return Result(body, failed=True)


def told(failed: Result) -> dict[str, str]:
    """What a failed future says: `error`, a sentence, and `category`."""
    said: dict[str, str] = json.loads(failed.body)
    return said


def new_id() -> str:
    """An id for a request."""
    return uuid.uuid4().hex


@dataclass(eq=False)
class Request:
    """An accepted request; `done` is set once, with its result."""

    id: str
    run_id: str
    seq_id: int
    kind: str
    payload: bytes
    forward_only: bool = False  # a forward_backward that leaves no gradient
    deaths: int | None = None  # of lives of the server that were at it; None: it is of this life
    accepted: float = field(default_factory=time.monotonic)
    polls: int = 0  # that wait for it now
    polled: float = 0.0  # when the last of them ended
    done: asyncio.Future[Result] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def row(self, server: str) -> RequestRow:
        """What the journal stores of it; `server` is the life of the server that accepts it."""
        return RequestRow(
            id=self.id,
            run_id=self.run_id,
            seq_id=self.seq_id,
            kind=self.kind,
            server=server,
            accepted_at=time.time(),
        )


class UnknownFuture(LookupError):
    """No request has this id."""


class ExpiredFuture(LookupError):
    """The result was fetched long ago and is no longer kept."""


class Futures:
    """All futures of this server."""

    def __init__(self, journal: Journal, backlog: Backlog) -> None:
        self._journal = journal
        self._backlog = backlog
        self.resumed = asyncio.Event()  # what earlier lives of the server left pending goes on
        self._pending: dict[str, Request] = {}
        self._fresh: OrderedDict[str, Result] = OrderedDict()
        self._fresh_bytes = 0
        self._retrieved: set[str] = set()
        self._storing: set[asyncio.Task[None]] = set()

    async def accept(self, request: Request) -> str:
        """Store a request; returns its id, or the id of the one that has its place already."""
        row = request.row(self._journal.server)
        return await self._journal.add_request(row, request.payload)

    def open(self, request: Request) -> None:
        self._pending[request.id] = request

    def complete(
        self,
        request: Request,
        result: Result,
        *,
        operation: OperationRow | None = None,
        records: Sequence[Work] = (),
    ) -> None:
        """Store a result and wake who waits for it, even if the database fails at first.

        Results are stored in the order of the calls; what comes next need not wait for that.
        """
        work = self._journal.completion(
            request.id, request.run_id, result, operation=operation, records=records
        )
        tried = self._backlog.put(work)
        tried.add_done_callback(lambda _: self._hand_out(request, result))

    def _hand_out(self, request: Request, result: Result) -> None:
        self._pending.pop(request.id, None)
        self._remember(request.id, result)
        if not request.done.done():
            request.done.set_result(result)

    async def stored(self) -> None:
        """Wait until every result so far is stored, for a few seconds at most."""
        if self._storing:
            await asyncio.wait(self._storing)
        await self._backlog.flush(_PATIENCE)

    async def poll(self, request_id: str, hold: float) -> Result | None:
        """The result, waiting up to `hold` seconds for it; None while it is pending.

        Raises `UnknownFuture` or `ExpiredFuture`.
        """
        request = self._pending.get(request_id)
        if request is not None:
            result = await self._wait(request, hold)
        else:
            result = self._fresh.get(request_id) or await self._stored(request_id)
            request = self._pending.get(request_id)
            if result is None and request is not None:  # an earlier life's, which goes on
                result = await self._wait(request, hold)
        if result is not None:
            self._retrieved.add(request_id)
        return result

    async def _wait(self, request: Request, hold: float) -> Result | None:
        request.polls += 1
        try:
            done, _ = await asyncio.wait([request.done], timeout=hold)
        finally:
            request.polls -= 1
            request.polled = time.monotonic()
        return request.done.result() if done else None

    def pending(self, request_id: str) -> Request | None:
        """A request that is not done."""
        return self._pending.get(request_id)

    def ahead(self, request: Request) -> int:
        """How many requests of the same run are to be done before this one."""
        return sum(
            other.run_id == request.run_id and other.seq_id < request.seq_id
            for other in self._pending.values()
        )

    def expire(self, request: Request) -> None:
        """End a request without a result: who asks for it later is told to begin anew."""
        task = asyncio.get_running_loop().create_task(self._expire(request))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _expire(self, request: Request) -> None:
        try:
            await self._journal.abandon(request.id)
        except Exception:
            _log.exception("The end of request %s could not be stored.", request.id)
        self._pending.pop(request.id, None)
        request.done.set_exception(ExpiredFuture(request.id))
        request.done.exception()  # nobody need be there to see it

    async def forget(self, run_id: str, request_ids: Sequence[str]) -> None:
        """Let go of results that their client says it has."""
        for request_id in request_ids:
            if (result := self._fresh.pop(request_id, None)) is not None:
                self._fresh_bytes -= len(result.body)
            self._retrieved.discard(request_id)
        await self._journal.forget(run_id, request_ids)

    async def tidy(self, keep_seconds: float, unfetched_seconds: float = math.inf) -> None:
        """Tell the journal what was fetched, and drop what was fetched long ago, or was there to be
        fetched for very long."""
        retrieved, self._retrieved = self._retrieved, set()
        if retrieved:
            try:
                await self._journal.mark_retrieved(sorted(retrieved))
            except BaseException:
                self._retrieved |= retrieved
                raise
        now = time.time()
        await self._journal.drop_results(now - keep_seconds, now - unfetched_seconds)

    async def _stored(self, request_id: str) -> Result | None:
        await self.resumed.wait()
        stored = await self._journal.future(request_id)
        if stored is None:
            raise UnknownFuture(request_id)
        if stored.result is not None:
            return stored.result
        if stored.done:
            raise ExpiredFuture(request_id)
        if stored.server != self._journal.server and stored.kind == "sample":
            raise ExpiredFuture(request_id)  # the SDK samples again by itself
        return None

    def _remember(self, request_id: str, result: Result) -> None:
        self._fresh[request_id] = result
        self._fresh_bytes += len(result.body)
        while self._fresh_bytes > _MEMORY_BYTES and len(self._fresh) > 1:
            _, oldest = self._fresh.popitem(last=False)
            self._fresh_bytes -= len(oldest.body)
