"""A run's story told to a service whose engine, or which itself, ends at any point of it.

A point is before or after anything that can be seen from outside: a transaction of the database,
and what an operation does in the engine. Between two points an end makes no difference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import event, select
from sqlalchemy.orm import Session

from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.schema import (
    BranchRow,
    CheckpointRow,
    OperationRow,
    PayloadRow,
    RequestRow,
    SamplerRow,
    StepRow,
)
from jupyter_tinker.server.service import TinkerService
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Asked, create, make_service, read

# The engine or the server is killed, or the server is asked to stop and does so in its own time.
Ending = Literal["engine", "server", "stop"]
# Something a person does, in the midst of what the client asks for. It may be done again.
Deed = Callable[[TinkerService], Awaitable[Any]]
# Each item is what a client asks for without waiting in between, or a deed.
Story = Sequence[Sequence[Asked] | Deed]


class Mortal(Database):
    """A database that is a point before and after each transaction."""

    def __init__(self, url: str, point: Callable[[str], None]) -> None:
        super().__init__(url)
        self._point = point

    async def call(self, work: Any) -> Any:
        self._point("transaction")
        result = await super().call(work)
        self._point("committed")
        return result


@dataclass
class Memory:
    """What the client remembers, which lives on."""

    request_ids: dict[int, str] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    deeds: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """What came of it all, without times."""

    results: dict[int, Any]
    deeds: dict[int, Any]
    state: dict[str, Any]  # of the run in the engine
    rows: dict[str, list[Any]]
    files: dict[str, str]  # of checkpoints
    copies: dict[str, str]  # the weights of samplers that are copies of the run's


class World:
    """Tells a story to one service after another, on what the former has left.

    `endings`: what ends at which point, counted from 0 over all lives.
    """

    def __init__(self, folder: Path, story: Story, endings: Mapping[int, Ending]) -> None:
        self.folder = folder
        self.points: list[str] = []
        self.lives = 0
        self.deaths = 0
        self._story = story
        self._endings = endings
        self._memory = Memory()
        self._engine: FakeEngine
        self._over: asyncio.Event  # the server was killed
        self._stopping: asyncio.Event
        self._watching = True

    def play(self) -> End:
        """Returns what came of it; the folder may hold a database to begin with."""
        while True:
            self.lives += 1
            database = Mortal(default_url(self.folder), self._point)
            _hurry(database)
            try:
                end = asyncio.run(asyncio.wait_for(self._live(database), 30))
            finally:
                asyncio.run(database.close())
            if end is not None:
                return end

    def _point(self, what: str) -> None:
        if self._over.is_set():
            raise asyncio.CancelledError  # as if the process were gone
        if not self._watching:
            return
        number = len(self.points)
        self.points.append(what)
        ending = self._endings.get(number)
        if ending == "engine" and self._engine.running:
            self.deaths += 1
            self._engine.die()
        elif ending == "stop":
            self._stopping.set()
        elif ending == "server":
            self._over.set()
            raise asyncio.CancelledError

    async def _live(self, database: Mortal) -> End | None:
        self._over, self._stopping = asyncio.Event(), asyncio.Event()
        self._engine = FakeEngine()
        self._engine.before = lambda op: self._point(op.name)
        self._engine.after = lambda op: self._point(f"{op.name} done")
        service = make_service(self.folder, self._engine, database)
        service.start("here")
        try:
            return await self._tell_until_it_ends(service)
        finally:
            service._lock.release()  # as the end of its process does

    async def _tell_until_it_ends(self, service: TinkerService) -> End | None:
        client = asyncio.create_task(self._tell(service))
        ends = [asyncio.create_task(e.wait()) for e in (self._over, self._stopping)]
        await asyncio.wait([client, *ends], return_when=asyncio.FIRST_COMPLETED)
        if self._over.is_set():
            return None
        if self._stopping.is_set():
            stop = asyncio.create_task(service.stop())  # and who asks goes on to ask
            await asyncio.wait([stop, ends[0]], return_when=asyncio.FIRST_COMPLETED)
            if not self._over.is_set():
                await stop
            return None
        await client
        self._watching = False
        end = await self._look(service)
        await service.stop()
        return end

    async def _tell(self, service: TinkerService) -> None:
        first = 1
        memory = self._memory
        if 0 not in memory.results:
            await self._ask(0, lambda: create(service), service)
        for number, item in enumerate(self._story):
            if isinstance(item, Sequence):
                asked = dict(enumerate(item, first))
                first += len(item)
                for seq_id, one in asked.items():
                    await self._submit(seq_id, one, service)
                await asyncio.gather(*(self._ask(seq_id, None, service) for seq_id in asked))
            elif number not in memory.deeds:
                memory.deeds[number] = await item(service)

    async def _submit(self, seq_id: int, asked: Asked, service: TinkerService) -> None:
        memory = self._memory
        if seq_id not in memory.request_ids:
            kind, payload, only = asked(RUN, seq_id)
            memory.request_ids[seq_id] = await service.submit(
                RUN, seq_id, kind, payload, forward_only=only
            )

    async def _ask(
        self, seq_id: int, submit: Callable[[], Awaitable[str]] | None, service: TinkerService
    ) -> None:
        memory = self._memory
        if seq_id not in memory.request_ids and submit is not None:
            memory.request_ids[seq_id] = await submit()
        request_id = memory.request_ids[seq_id]
        if seq_id not in memory.results:
            while (result := await service.futures.poll(request_id, 5.0)) is None:
                pass
            memory.results[seq_id] = read(result)

    async def _look(self, service: TinkerService) -> End:
        run = await service.run(RUN)
        async with run.lock:
            await service._revival.hold(run)
        await service.futures.stored()
        state = asdict(self._engine.runs.states[RUN])
        copies = await self._copies(service)
        # No other state that was made is left in the engine.
        others = [name for name in self._engine.runs.states if name != RUN]
        assert others == [], others
        rows = service._database.run(_rows)
        root = self.folder / "checkpoints"
        files = {str(f.relative_to(root)): f.read_text() for f in root.rglob("state.json")}
        return End(self._memory.results, self._memory.deeds, state, rows, files, copies)

    async def _copies(self, service: TinkerService) -> dict[str, str]:
        """Sample from each, which has the engine hold it."""
        query = select(SamplerRow).where(SamplerRow.run_id == RUN)
        rows: list[SamplerRow] = service._database.run(lambda db: list(db.scalars(query)))
        for row in rows:
            body = (
                b'{"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1}}'
            )
            request_id = await service.sampling.submit(row.id, 0, 1, body)
            result = await service.futures.poll(request_id, 10.0)
            assert result is not None
            assert not result.failed, result
        return dict(self._engine.copies)


def _timeless(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name != "created_at"}


def _rows(db: Session) -> dict[str, list[Any]]:
    """What the database says of the run, without times."""
    seq_ids = {row.id: row.seq_id for row in db.scalars(select(RequestRow))}
    operations = select(OperationRow).order_by(OperationRow.position)
    steps = select(StepRow).order_by(StepRow.id)
    branches = select(BranchRow).order_by(BranchRow.number)
    return {
        "operations": [
            (o.position, o.kind, o.step, o.request_id and seq_ids[o.request_id], _timeless(o.data))
            for o in db.scalars(operations)
        ],
        "steps": [
            (s.branch, s.step, s.skipped, s.loss_sum, s.tokens, s.datums, s.grad_norm,
             s.learning_rate, s.learning_rate_requested)
            for s in db.scalars(steps)
        ],
        "branches": [
            (b.number, b.first_position, b.parent_position, b.step) for b in db.scalars(branches)
        ],
        "checkpoints": sorted(
            (c.kind, c.name, c.step, seq_ids.get(c.request_id, c.request_id))
            for c in db.scalars(select(CheckpointRow))
        ),
        "payloads": sorted(seq_ids[p.request_id] for p in db.scalars(select(PayloadRow))),
        "requests": sorted(
            (r.seq_id, r.kind, r.failed, r.done_at is not None)
            for r in db.scalars(select(RequestRow))
        ),
    }  # fmt: skip


def _hurry(database: Database) -> None:
    """Nothing here survives the machine."""

    @event.listens_for(database.open(), "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")
