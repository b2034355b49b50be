"""Sampling sessions and their samples: from an accepted request to a job of the pump to a future.

Knows nothing of HTTP, nor of the order in which a run saves its weights.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..wire import tinker
from ..wire.ops import OpError
from .catalog import BaseModel, Catalog
from .checkpoints import CheckpointPath, Checkpoints, parse_path
from .completions import Completions, client_of
from .futures import Futures, Request, failure, new_id
from .history import HistoryGone
from .journal import PROTOBUF_TYPE, Completion, Journal, Result
from .pump import Pump
from .runs import Run
from .sample_jobs import Job, Outcome, copy_is_gone
from .samplers import Samplers, Target, inflight_of, is_snapshot, sampler_id
from .sampling_engine import Engine
from .schema import SamplerRow
from .turns import Turns

_ENDED = "The session of this sampling client has ended; make a new ServiceClient."


@dataclass(frozen=True)
class SamplingLimits:
    """How much is kept at hand, and for how long a silent client is believed in."""

    max_samples: int  # sequences of a sampler at the engine
    max_samplers: int  # base models and checkpoints loaded for sampling
    max_copies: int  # of a run's weights
    abandoned: float  # seconds


class Sampling:
    """All sampling of one server."""

    def __init__(
        self,
        *,
        samplers: Samplers,
        journal: Journal,
        futures: Futures,
        checkpoints: Checkpoints,
        catalog: Catalog,
        engine: Engine,
        turns: Turns,
        limits: SamplingLimits,
        revive: Callable[[Target, int], Awaitable[None]],
        log: Any,
    ) -> None:
        self.samplers = samplers
        self.completions = Completions(journal)
        self.pump = Pump(
            engine,
            turns,
            max_samples=limits.max_samples,
            max_loaded=limits.max_samplers,
            revive=self._revive,
            log=log,
        )
        self._revive_copy = revive  # makes a copy of a run's weights, as of a position
        self._futures = futures
        self._checkpoints = checkpoints
        self._catalog = catalog
        self._limits = limits
        self._log = log
        self._jobs: dict[str, tuple[Job, Request]] = {}  # by the request's id
        self._rows: dict[str, SamplerRow] = {}  # that were sampled from, and have not ended

    async def close(self) -> None:
        await self.pump.close()

    # Sampling sessions

    async def create(
        self, body: tinker.CreateSamplingSession, owner: str, *, allow_path: bool
    ) -> str:
        """A sampling session for a base model or a checkpoint; returns its id.

        A checkpoint says itself what its base model is. The same `(session_id,
        sampling_session_seq_id)` gets the same id. Raises `BadRequest`, `OpError`,
        `catalog.UnknownModelError` and `checkpoints.UnknownCheckpoint`.
        """
        if body.model_path is not None:
            row = await self._of_checkpoint(body.model_path)
        elif body.base_model is not None:
            row = await self._of_base_model(body.base_model, allow_path)
        else:
            raise tinker.BadRequest("create_sampling_session needs a base_model or a model_path.")
        row.id = sampler_id(body.session_id, body.sampling_session_seq_id)
        row.session_id, row.owner, row.created_at = body.session_id, owner, time.time()
        stored = await self.samplers.add(row)
        if (stored.model_path, stored.base_model) != (row.model_path, row.base_model):
            raise tinker.BadRequest(
                f"Number {body.sampling_session_seq_id} of this session is another sampling "
                "session already; count on."
            )
        return stored.id

    async def target(self, name: str, *, allow_path: bool) -> tuple[Target, BaseModel]:
        """What a `tinker://` path or the name of a base model stands for. Raises as `create`."""
        if name.startswith("tinker://"):
            row = await self._of_checkpoint(name)
        else:
            row = await self._of_base_model(name, allow_path)
        model = await asyncio.to_thread(self._catalog.resolve, row.base_model, allow_path=True)
        return self._target(row), model

    async def _of_checkpoint(self, text: str) -> SamplerRow:
        path = parse_path(text)
        if path.kind == "external_weights":
            raise tinker.BadRequest(
                f"{text[:200]} are weights for use elsewhere; sample from weights or "
                "sampler_weights."
            )
        saved = await self._checkpoints.get(path)
        # A base that a path named once is still the owner's choice when its checkpoint is loaded.
        model = await asyncio.to_thread(self._catalog.resolve, saved.base_model, allow_path=True)
        # A checkpoint that is overwritten later is another sampler.
        target = f"{path}@{saved.created_at:.6f}"
        return SamplerRow(
            base_model=saved.base_model,
            base_path=str(model.path),
            model_path=str(path),
            target=target,
        )

    async def _of_base_model(self, name: str, allow_path: bool) -> SamplerRow:
        model = await asyncio.to_thread(self._catalog.resolve, name, allow_path=allow_path)
        path = str(model.path)
        return SamplerRow(base_model=name, base_path=path, model_path=None, target=path)

    async def get(self, sampler: str) -> SamplerRow:
        """Raises `UnknownSampler`."""
        return self._rows.get(sampler) or await self.samplers.get(sampler)

    # Copies of a run's weights

    def copy_of(self, run: Run, body: tinker.SaveWeightsForSampler) -> Target:
        """The sampler that `save_weights_for_sampler` without a path is to make of a run.

        All that are made `inflight` of one run are the same, and have its newest weights.
        """
        if body.sampling_session_seq_id is None:
            raise OpError("save_weights_for_sampler needs a path or a sampling_session_seq_id.")
        if body.path is not None:
            raise OpError(
                "save_weights_for_sampler takes a path, to keep the weights, or a "
                "sampling_session_seq_id, to sample from them now; not both."
            )
        name = sampler_id(run.row.session_id, body.sampling_session_seq_id)
        if body.kind == "inflight":
            name = inflight_of(run.id)
        return Target(name, run.row.base_model, run.row.base_path, run=run.id)

    async def add_copy(self, run: Run, body: tinker.SaveWeightsForSampler, target: Target) -> str:
        """Make a copy that the engine has known to clients; returns its sampling session's id."""
        assert body.sampling_session_seq_id is not None
        self.pump.adopt(target)
        row = SamplerRow(
            id=sampler_id(run.row.session_id, body.sampling_session_seq_id),
            session_id=run.row.session_id,
            owner=run.row.owner,
            base_model=run.row.base_model,
            base_path=run.row.base_path,
            run_id=run.id,
            position=run.place.head,
            target=target.name,
            created_at=time.time(),
        )
        stored = await self.samplers.add(row)
        if (stored.run_id, stored.target) != (row.run_id, row.target):
            raise OpError(
                f"Number {body.sampling_session_seq_id} of this session is another sampling "
                "session already; count on."
            )
        await self._drop_old_copies(run)
        return row.id

    async def _drop_old_copies(self, run: Run) -> None:
        copies = self.pump.copies(run.id)
        kept = list(filter(is_snapshot, copies))
        excess = len(kept) - self._limits.max_copies
        dropped = [name for name in kept[:-1] if not self.pump.pending(name)][: max(excess, 0)]
        for name in dropped:
            self.pump.unload(name)
            self._rows.pop(name, None)
        if dropped:
            await self.samplers.end(dropped, _dropped(self._limits.max_copies))

    async def _revive(self, target: Target) -> None:
        """Have the engine make a copy that another engine had. Raises `OpError`."""
        position = await self.samplers.position(target.name)
        if position is None:
            raise copy_is_gone()
        try:
            await self._revive_copy(target, position)
        except HistoryGone as error:
            raise OpError(f"These weights are gone. {error}", "server") from None

    async def end_run(self, run_id: str, reason: str) -> None:
        """Free the copies of a run's weights; what is pending of them fails."""
        for name in self.pump.copies(run_id):
            for job, _ in list(self._jobs.values()):
                if job.target.name == name:
                    self.pump.cancel(job, OpError(reason, "user"))
            self.pump.unload(name)

    async def end_session(self, session_id: str) -> None:
        """End the samplers of a session; what is pending of them fails."""
        rows = await self.samplers.of_session(session_id)
        await self.samplers.end([row.id for row in rows], _ENDED)
        ended = {row.id for row in rows}
        for row in rows:
            self._rows.pop(row.id, None)
        for job, request in list(self._jobs.values()):
            if request.run_id in ended:
                self.pump.cancel(job, OpError(_ENDED, "user"))
        shared = {row.target for row in self._rows.values()}
        for name in {row.target for row in rows} - shared:
            if not self.pump.pending(name):
                self.pump.unload(name)

    # Samples

    async def submit(self, sampler: str, seq_id: int, samples: int, payload: bytes) -> str:
        """Accept a request to sample; returns the future's id. Raises `UnknownSampler`.

        The same `(sampler, seq_id)` gets the same future and is done once.
        """
        row = await self.get(sampler)
        request = Request(new_id(), sampler, seq_id, "sample", payload)
        request_id = await self._futures.accept(request)
        if request_id == request.id:
            self._begin(row, request, samples)
        return request_id

    def _begin(self, row: SamplerRow, request: Request, samples: int) -> None:
        self._futures.open(request)
        request.done.add_done_callback(partial(self._over, request))
        if row.ended is not None:
            self._futures.complete(request, failure(row.ended, "user"))
            return
        self._rows[row.id] = row
        job = Job(
            request.id, self._target(row), request.payload, samples, partial(self._finish, request)
        )
        self._jobs[request.id] = (job, request)
        self.pump.put(job)

    def job(
        self,
        target: Target,
        body: bytes,
        samples: int,
        finish: Callable[[Outcome], None],
        stream: Callable[[list[list[int]]], None] | None,
    ) -> Job:
        """A job that is nobody's future: whoever made it waits for it, or cancels it."""
        return Job(new_id(), target, body, samples, finish, stream)

    def _finish(self, request: Request, outcome: Outcome) -> None:
        self._jobs.pop(request.id, None)
        if isinstance(outcome, bytes):
            self._futures.complete(request, Result(outcome, PROTOBUF_TYPE))
        elif isinstance(outcome, _Abandoned):
            self._futures.expire(request)
        else:
            self._futures.complete(request, failure(outcome.message, outcome.category))

    def _over(self, request: Request, done: asyncio.Future[Result]) -> None:
        gone = done.cancelled() or done.exception() is not None or done.result().failed
        size = None if gone else len(done.result().body)
        client = client_of(request.run_id, request.seq_id)
        self.completions.add(client, Completion(request.id, size))

    def cancel(self, request_id: str) -> None:
        """Give up a sample that is pending; of others nothing is done."""
        if (known := self._jobs.get(request_id)) is not None:
            self.pump.cancel(known[0], OpError("This sample was cancelled by its client.", "user"))

    def cancel_abandoned(self) -> None:
        """Give up samples that nobody asks for any more; one who comes back samples again."""
        before = time.monotonic() - self._limits.abandoned
        for job, request in list(self._jobs.values()):
            asked = self.completions.asked(client_of(request.run_id, request.seq_id))
            if not request.polls and max(request.accepted, request.polled, asked) < before:
                self._log.info("Nobody asks for sample %s any more; it is given up.", request.id)
                self.pump.cancel(job, _Abandoned("Nobody asked for this sample.", "user"))

    async def retrieved(self, sampler: str, request_ids: Sequence[str]) -> None:
        """Drop results that the client says it has."""
        await self._futures.forget(sampler, request_ids)

    def ahead(self, request_id: str) -> int | None:
        """How many of its sampler's wait before a sample; None if it does not wait."""
        known = self._jobs.get(request_id)
        return None if known is None else self.pump.ahead(known[0])

    def _target(self, row: SamplerRow) -> Target:
        folder = None
        if row.model_path is not None:
            path: CheckpointPath = parse_path(row.model_path)
            folder = str(self._checkpoints.folder(path))
        return Target(row.target, row.base_model, row.base_path, folder, row.run_id)


class _Abandoned(OpError):
    """Nobody is there to read why."""


def _dropped(kept: int) -> str:
    return (
        f"These weights were dropped: of a run's unnamed sampling clients the {kept} used last are "
        "kept (TinkerExtension.max_unnamed_samplers). Make a new one, raise that number, or save "
        "the weights with save_weights_for_sampler(name)."
    )
