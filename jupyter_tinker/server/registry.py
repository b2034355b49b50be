"""All runs that this life of the server has met, and their queues; others are loaded if asked for.

A run of an earlier life is as it was: its place in its history, what it has accumulated, what is
pending. Only the engine must be given it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import fields
from typing import Any, Protocol

from ..wire import ops, tinker
from ..wire.controls import Controls
from .futures import Futures, Request
from .history import History
from .journal import Journal
from .run_store import RunStore
from .runs import Run, RunQueue, Spoiled
from .schema import OperationRow, RequestRow, RunRow

# What is a run's own: its requests, each with a number.
KINDS = (
    "create_model",
    "create_via_load",
    "forward_backward",
    "optim_step",
    "load_weights",
    "save_weights",
    "save_weights_for_sampler",
    "save_weights_external",
)


class UnknownRun(LookupError):
    """No run has this id; the message names it."""


class Performs(Protocol):
    """What is needed of the trainer."""

    def perform(self, run: Run, request: Request) -> Coroutine[Any, Any, None]: ...

    def give_up(self, run: Run, request: Request, reason: str) -> Awaitable[None]: ...


class Registry:
    """Finds runs, and puts their requests in order."""

    def __init__(
        self,
        journal: Journal,
        run_store: RunStore,
        history: History,
        futures: Futures,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        *,
        patience: float,
        log: Any,
    ) -> None:
        self._journal = journal
        self._run_store = run_store
        self._history = history
        self._futures = futures
        self._spawn = spawn
        self._patience = patience
        self._log = log
        self._runs: dict[str, Run] = {}
        self._queues: dict[str, RunQueue] = {}
        self._loading = asyncio.Lock()
        self._closed = False
        self.trainer: Performs  # is given later: it needs to find runs, too

    def __iter__(self) -> Any:
        return iter(list(self._runs.values()))

    def known(self, run_id: str) -> Run | None:
        """A run that this life of the server has met."""
        return self._runs.get(run_id)

    async def get(self, run_id: str) -> Run:
        """Raises `UnknownRun`."""
        run = self._runs.get(run_id)
        if run is None:
            async with self._loading:
                run = self._runs.get(run_id) or await self._load(run_id)
        return run

    async def submit(self, run: Run, request: Request) -> str:
        """Accept a request; returns the future's id."""
        request_id = await self._futures.accept(request)
        if request_id == request.id:
            self._enqueue(run, request)
        return request_id

    def add(self, run: Run, request: Request) -> None:
        """Begin a new run with the request that creates it, which is accepted."""
        self._runs[run.id] = run
        self._queues[run.id] = self._queue(run, first=0)
        self._enqueue(run, request)

    async def drained(self, run: Run) -> None:
        """Wait until nothing of a run is being done that could be."""
        await self._queues[run.id].drained()

    async def close(self) -> None:
        """Begin nothing more; what is accepted from now on is left to the server's next life."""
        self._closed = True
        for queue in self._queues.values():
            await queue.close()

    async def resume(self) -> None:
        """Go on with what an earlier life of the server left pending."""
        for run_id in await self._journal.owners_of_pending(KINDS):
            try:
                await self.get(run_id)
            except Exception:
                self._log.exception("Run %s cannot be gone on with.", run_id)

    def _enqueue(self, run: Run, request: Request) -> None:
        self._futures.open(request)
        if self._closed:
            return
        if run.ended is not None:
            # In any order: nothing of an ended run is computed any more.
            self._spawn(self.trainer.perform(run, request))
        else:
            self._queues[run.id].put(request)

    def _queue(self, run: Run, *, first: int) -> RunQueue:
        return RunQueue(
            lambda request: self.trainer.perform(run, request),
            lambda request, reason: self.trainer.give_up(run, request, reason),
            first=first,
            patience=self._patience,
        )

    async def _load(self, run_id: str) -> Run:
        row = await self._run_store.run(run_id)
        if row is None:
            raise UnknownRun(f"There is no training run {run_id[:200]!r}.")
        controls = Controls() if row.controls is None else Controls.from_json(row.controls)
        run = Run(
            row,
            ops.LoraSpec(**row.lora),
            place=await self._history.place(run_id),
            controls=controls,
            ended=why_ended(row),
        )
        for operation in await self._history.since_boundary(run_id, run.place):
            _recall(run, operation)
        run.step = await self._history.step_at(run_id, run.place.head)
        first = await self._journal.next_seq_id(run_id)
        pending = await self._journal.pending(run_id)
        if (added := self._runs.get(run_id)) is not None:  # meanwhile: it is just being created
            return added
        self._runs[run_id] = run
        self._queues[run_id] = self._queue(run, first=first)
        for request, payload in pending:
            self._enqueue(run, _again(request, payload))
        return run


def why_ended(row: RunRow) -> str | None:
    """Why a run computes no more, by its row."""
    if row.copied_from is None:
        return row.ended
    return (
        f"Run {row.id} only holds a copy of {row.copied_from} and cannot be trained; create a "
        "training client from the copy's path instead."
    )


def _again(row: RequestRow, payload: bytes) -> Request:
    forward_only = False
    if row.kind == "forward_backward":
        with suppress(tinker.BadRequest):
            forward_only = tinker.forward_backward_address(payload).forward_only
    return Request(row.id, row.run_id, row.seq_id, row.kind, payload, forward_only, row.deaths)


def _recall(run: Run, operation: OperationRow) -> None:
    """What was accumulated since the last step."""
    if (stats := operation.data.get("stats")) is not None:
        run.totals.add(ops.ForwardBackwardStats(**stats))
    if operation.kind == "spoiled":
        known = {f.name: operation.data[f.name] for f in fields(Spoiled)}
        run.spoiled = Spoiled(**known)
