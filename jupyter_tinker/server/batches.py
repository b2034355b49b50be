"""What runs were trained on last, token by token: found in what is stored, and made when asked for.

A batch is what was accumulated for one optimizer step, in however many requests it came. Training
waits for none of this: all is read beside the database's own thread, and one look is taken at a
time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..wire.ops import OpError
from ..wire.tinker import BadRequest
from . import chat
from .database import Database
from .history import BOUNDARIES, HistoryGone, Place, place_of
from .schema import OperationRow, PayloadRow, RequestRow, RunRow

if TYPE_CHECKING:
    from .hardest import Scored

MOST_BATCHES = 100
MOST_SEQUENCES = 16
MOST_LENGTH = 1024  # of a sequence

# How far a look goes back, in changes of a run, and how much of a batch it takes in.
_OPERATIONS = 1000
_BYTES = 64 * 2**20
_DATUMS = 8192
_REMEMBERED = 8  # answers, for several who look at the same
_AT_ONCE = 500  # ids in one statement

_GONE = (
    "This batch is no longer kept: the data of steps is dropped to keep within "
    "TinkerExtension.history_bytes, and all but the last results an hour after they were fetched."
)


@dataclass
class Batch:
    """The requests of one optimizer step, oldest first."""

    branch: int
    operations: list[OperationRow] = field(default_factory=list)
    done: bool = False  # its step was made

    @property
    def id(self) -> int:
        """The position of its first request in the run's history."""
        return self.operations[0].position

    @property
    def requests(self) -> list[str]:
        return [str(operation.request_id) for operation in self.operations]

    def sum(self, name: str) -> float:
        return float(sum(operation.data["stats"][name] or 0 for operation in self.operations))

    def json(self) -> dict[str, Any]:
        weight = self.sum("weight_sum")
        return {
            "id": self.id,
            "step": self.operations[-1].step + 1,
            "branch": self.branch,
            "stepped": self.done,
            "time": self.operations[-1].time,
            "requests": len(self.operations),
            "sequences": int(self.sum("num_datums")),
            "tokens": int(self.sum("num_tokens")),
            "loss_mean": self.sum("loss_sum") / weight if weight else None,
        }


@dataclass(frozen=True)
class Wish:
    """What is to be seen of a batch."""

    batch: int
    sequences: int
    length: int  # of each, in tokens


class Batches:
    """The last batches of all runs."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._one = asyncio.Lock()
        self._answers: OrderedDict[tuple[str, Wish, int], dict[str, Any]] = OrderedDict()

    async def list(self, run_id: str, limit: int) -> dict[str, Any]:
        """The batches that can be looked into, newest first."""
        return await asyncio.to_thread(self._db.run, partial(_listed, run_id=run_id, limit=limit))

    async def view(self, run: RunRow, wish: Wish) -> dict[str, Any]:
        """The hardest sequences of a batch. Raises `HistoryGone`."""
        async with self._one:
            batch = await asyncio.to_thread(self._db.run, partial(_batch, run.id, wish.batch))
            key = run.id, wish, len(batch.operations)
            answer = self._answers.get(key)
            if answer is None:
                answer = await asyncio.to_thread(self._look, batch, Path(run.base_path), wish)
                self._answers[key] = answer
            self._answers.move_to_end(key)
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        return {**answer, **batch.json()}

    def _look(self, batch: Batch, folder: Path, wish: Wish) -> dict[str, Any]:
        from . import hardest  # numpy: only once somebody looks

        taken = _Taken(batch, self._db)
        found = hardest.hardest(taken.sequences(), wish.sequences)
        problem = taken.problem
        parts = [hardest.part(one, wish.length) for one in found]
        try:
            text = chat.load(folder)
            pieces = [chat.pieces(text, part.tokens) for part in parts]
            rows = [part.json(shown, text.marks) for part, shown in zip(parts, pieces, strict=True)]
        except Exception as error:
            what = "it has no tokenizer.json" if isinstance(error, BadRequest) else str(error)[:200]
            problem = problem or f"The model's text cannot be shown, only its tokens: {what}."
            rows = [part.json(None, frozenset()) for part in parts]
        return {"loss_fn": taken.loss, "hardest": rows, "problem": problem}


class _Taken:
    """What a look at a batch takes in, request by request, so that one at a time is in memory."""

    def __init__(self, batch: Batch, database: Database) -> None:
        self.loss: str | None = None
        self.problem: str | None = None
        self._batch = batch
        self._db = database

    def sequences(self) -> Iterator[Scored]:
        """Raises `HistoryGone`."""
        from . import hardest

        sizes = self._db.run(lambda db: _sizes(db, self._batch.requests))
        number = looked = taken = 0
        for operation in self._batch.operations:
            request, count = str(operation.request_id), int(operation.data["stats"]["num_datums"])
            if request not in sizes:
                raise HistoryGone(_GONE)
            if taken + sizes[request] <= _BYTES and looked + count <= _DATUMS:
                looked, taken = looked + count, taken + sizes[request]
                payload, result = self._db.run(partial(_bodies, request_id=request))
                try:
                    self.loss, every = hardest.sequences(payload, result, number)
                    yield from self._watched(every)
                except OpError as error:
                    self.problem = f"A part of this batch cannot be shown: {error}."
            number += count
        if looked < number:
            self.problem = (
                f"Of {number} sequences {looked} were looked at: the requests that are within "
                f"{_DATUMS} sequences and {_BYTES >> 20} MiB."
            )

    def _watched(self, every: Iterator[Scored]) -> Iterator[Scored]:
        for one in every:
            if one.logprobs is None:
                self.problem = f"The loss {self.loss!r} gave no log-probabilities."
            yield one


def _listed(db: Session, run_id: str, limit: int) -> dict[str, Any]:
    batches = list(_grouped(_operations(db, run_id), place_of(db, run_id)))
    batches.reverse()
    kept = _sizes(db, [request for batch in batches for request in batch.requests])
    whole = [batch for batch in batches if all(request in kept for request in batch.requests)]
    problem = _GONE.replace("This batch is", "This run's batches are") if batches else None
    return {
        "batches": [batch.json() for batch in whole[:limit]],
        "problem": None if whole else problem,
    }


def _operations(db: Session, run_id: str) -> Sequence[OperationRow]:
    """A run's last ones that are of training, oldest first."""
    kinds = ("forward_backward", *BOUNDARIES)
    query = (
        select(OperationRow)
        .where(OperationRow.run_id == run_id, OperationRow.kind.in_(kinds))
        .order_by(OperationRow.position.desc())
        .limit(_OPERATIONS)
    )
    found = list(db.scalars(query))
    found.reverse()
    if len(found) == _OPERATIONS:  # of the first batch some requests may be missing
        while found and found[0].kind == "forward_backward":
            del found[0]
    return found


def _batch(run_id: str, id: int, db: Session) -> Batch:
    query = (
        select(OperationRow)
        .where(OperationRow.run_id == run_id, OperationRow.position >= id)
        .where(OperationRow.kind.in_(("forward_backward", *BOUNDARIES)))
        .order_by(OperationRow.position)
        .limit(_OPERATIONS)
    )
    found = list(db.scalars(query))
    batch = next(_grouped(found, place_of(db, run_id)), None)
    if batch is None or batch.id != id:
        raise HistoryGone(f"Run {run_id} has no batch {id}.")
    return batch


def _grouped(operations: Sequence[OperationRow], place: Place) -> Iterator[Batch]:
    """Batches, oldest first."""
    batch: Batch | None = None
    for operation in operations:
        branch = place.branch_of(operation.position)
        if batch is not None and (batch.branch != branch or operation.kind in BOUNDARIES):
            batch.done = batch.branch == branch and operation.kind == "optim_step"
            yield batch
            batch = None
        if operation.kind == "forward_backward" and operation.request_id is not None:
            batch = batch or Batch(branch)
            batch.operations.append(operation)
    if batch is not None:
        yield batch


def _sizes(db: Session, requests: Sequence[str]) -> dict[str, int]:
    """Bytes of the payloads, of those requests whose payload and result are kept."""
    found: dict[str, int] = {}
    for start in range(0, len(requests), _AT_ONCE):
        query = (
            select(RequestRow.id, func.length(PayloadRow.body))
            .join(PayloadRow, PayloadRow.request_id == RequestRow.id)
            .where(RequestRow.id.in_(requests[start : start + _AT_ONCE]))
            .where(RequestRow.result.is_not(None), RequestRow.failed.is_(False))
        )
        found.update((id, size) for id, size in db.execute(query))
    return found


def _bodies(db: Session, request_id: str) -> tuple[bytes, bytes]:
    """Payload and result of a request. Raises `HistoryGone`."""
    query = (
        select(PayloadRow.body, RequestRow.result)
        .join(RequestRow, RequestRow.id == PayloadRow.request_id)
        .where(RequestRow.id == request_id, RequestRow.result.is_not(None))
    )
    found = db.execute(query).first()
    if found is None or found[1] is None:
        raise HistoryGone(_GONE)
    return found[0], found[1]
