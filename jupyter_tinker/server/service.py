"""The Tinker service of one Jupyter server: its parts together, and what the HTTP edge asks.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..wire import tinker
from .audit import Audit
from .backlog import Backlog
from .batches import Batches
from .catalog import Catalog
from .checkpoints import Checkpoints
from .cleaning import Cleaning
from .copies import Copies
from .creation import RunCreation
from .custom_losses import CustomLosses
from .data_lock import DataLock
from .database import Database
from .events import EventLimits, Events
from .futures import Futures, Request, new_id
from .history import History
from .identity import identity
from .journal import Journal
from .keys import Keys
from .lives import Copier, Lives
from .lr_finder import LrFinder
from .preview_store import PreviewStore
from .previews import Previews
from .progress import Tasks
from .registry import Registry
from .retention import Retention
from .revival import Revival
from .runs import Run
from .samplers import Samplers
from .sampling import Sampling, SamplingLimits
from .saving import Saving
from .schema import SessionRow
from .session_index import SessionIndex
from .signing import Signer
from .snapshots import Snapshots
from .steering import Steering
from .supervisor import EngineSupervisor
from .traces import Traces
from .training import Trainer
from .turns import Turns

_TIDY_SECONDS = 30.0
_WEIGH_SECONDS = 300.0  # between two looks at what histories take


class UnknownSession(LookupError):
    """No session has this id, or it has ended; the message says which."""


@dataclass(frozen=True)
class Limits:
    """What the service keeps to; times in seconds."""

    seq_gap: float  # for how long a missing request number is waited for
    keep_results: float  # for how long a result is kept after it was fetched
    session_expiry: float  # without a sign of a client, until its runs leave the engine's memory
    snapshot_overhead: float  # of the time that runs compute, what their snapshots may take
    history_bytes: int  # that the histories of all runs may take
    keep_unfetched: float = 7 * 86_400.0  # for how long a result is kept that nobody fetches


class TinkerService:
    """Sessions, runs and requests of one server."""

    def __init__(
        self,
        *,
        database: Database,
        state_dir: Path,
        catalog: Catalog,
        supervisor: EngineSupervisor,
        limits: Limits,
        sampling_limits: SamplingLimits,
        sampling_share: float,
        lora_alpha: float,
        log: Any,
        event_limits: EventLimits | None = None,
    ) -> None:
        self.catalog = catalog
        self.supervisor = supervisor
        self.journal = Journal(database, server=uuid.uuid4().hex)
        self.keys = Keys(database)
        self.audit = Audit(database)
        self.progress = supervisor.progress = Tasks(log)
        self.events = Events(database, event_limits, self.progress)
        self.checkpoints = Checkpoints(database, state_dir / "checkpoints")
        self.session_index = SessionIndex(database, state_dir / "checkpoints")
        self.copies = Copies(database, self.checkpoints)
        self.traces = Traces(database, state_dir / "traces")
        self.batches = Batches(database)
        self._backlog = Backlog(database)
        self.futures = Futures(self.journal, self._backlog)
        self.signer = Signer()
        self.identity = identity(state_dir)
        self._custom_losses = CustomLosses(database, supervisor, self.futures, log)
        self._database = database
        self._limits = limits
        self._sampling_limits = sampling_limits
        self._log = log
        self._background: set[asyncio.Task[None]] = set()
        self.history = History(database, self._backlog)
        self.registry = Registry(
            self.journal,
            self.history,
            self.futures,
            self._spawn,
            patience=limits.seq_gap,
            log=log,
        )
        turns = Turns(sampling_share)
        self.snapshots = Snapshots(
            supervisor,
            self.history,
            state_dir / "snapshots",
            overhead=limits.snapshot_overhead,
            log=log,
        )
        self._revival = Revival(
            supervisor=supervisor,
            turns=turns,
            history=self.history,
            snapshots=self.snapshots,
            checkpoints=self.checkpoints,
            custom_losses=self._custom_losses,
            events=self.events,
            log=log,
        )
        self._copier = Copier(supervisor, self.registry, self._revival)
        self.sampling = Sampling(
            samplers=Samplers(database),
            journal=self.journal,
            futures=self.futures,
            checkpoints=self.checkpoints,
            catalog=catalog,
            engine=supervisor,
            turns=turns,
            limits=sampling_limits,
            revive=self._copier.revive,
            log=log,
        )
        self.saving = Saving(
            supervisor=supervisor,
            turns=turns,
            checkpoints=self.checkpoints,
            sampling=self.sampling,
            history=self.history,
            revival=self._revival,
            events=self.events,
            find_run=self.registry.get,
        )
        self.steering = Steering(
            supervisor=supervisor,
            backlog=self._backlog,
            history=self.history,
            events=self.events,
            revival=self._revival,
            registry=self.registry,
            saving=self.saving,
            log=log,
        )
        self.previews = Previews(
            store=PreviewStore(database, self._backlog, self.events),
            supervisor=supervisor,
            registry=self.registry,
            revival=self._revival,
            sampling=self.sampling,
            spawn=self._spawn,
            log=log,
        )
        self.trainer = Trainer(
            supervisor=supervisor,
            journal=self.journal,
            futures=self.futures,
            events=self.events,
            saving=self.saving,
            custom_losses=self._custom_losses,
            revival=self._revival,
            snapshots=self.snapshots,
            turns=turns,
            stepped=self.steering.stepped,
            preview=self.previews.stepped,
            log=log,
        )
        self.registry.trainer = self.trainer
        self.lives = Lives(
            supervisor=supervisor,
            journal=self.journal,
            futures=self.futures,
            events=self.events,
            registry=self.registry,
            revival=self._revival,
            snapshots=self.snapshots,
            custom_losses=self._custom_losses,
            spawn=self._spawn,
            log=log,
        )
        self.lr_finder = LrFinder(
            supervisor=supervisor,
            turns=turns,
            history=self.history,
            snapshots=self.snapshots,
            revival=self._revival,
            custom_losses=self._custom_losses,
            events=self.events,
            registry=self.registry,
            log=log,
        )
        self._creation = RunCreation(
            journal=self.journal,
            catalog=catalog,
            registry=self.registry,
            saving=self.saving,
            lora_alpha=lora_alpha,
        )
        self.retention = Retention(database, state_dir / "snapshots", self.events, log=log)
        self.cleaning = Cleaning(
            retention=self.retention,
            registry=self.registry,
            sessions=self.session_index,
            supervisor=supervisor,
        )
        self._lock = DataLock(state_dir)
        self._about = ""
        self._started = False
        self._weighed = 0.0
        self._retiring: set[str] = set()

    def start(self, about: str) -> None:
        """Go on with what was pending, and begin the housekeeping. Called on the event loop.

        `about` tells other servers where this one is.
        """
        self._about = about
        if (refusal := self.refusal()) is not None:
            self._log.error("Tinker does nothing here. %s", refusal)

    def refusal(self) -> str | None:
        """Why this server does nothing; None if it does, and from then on."""
        if not self._started:
            if not self._lock.take(self._about):
                return self._lock.refusal()
            self._started = True
            self._begin()
        return None

    def _begin(self) -> None:
        self.events.start()
        self._spawn(self.lives.resume())
        self._spawn(asyncio.to_thread(self.checkpoints.sweep))
        self._spawn(self.snapshots.sweep())
        self._spawn(self._retire_runs())
        self._spawn(self._tidy())
        self._spawn(self._watch_clients())

    async def stop(self) -> None:
        """End the engine and close the database."""
        await self.events.close()
        for task in self._background:
            task.cancel()
        await self.lr_finder.close()
        await self.registry.close()
        await self.sampling.close()
        await self.lives.farewell()
        await self.supervisor.stop()
        await self.futures.stored()
        with suppress(Exception):
            await self._tidy_results()
        await self._backlog.close()
        await self._database.close()
        self._lock.release()

    # Sessions

    async def create_session(
        self, body: tinker.CreateSession, owner: str, idempotency_key: str | None
    ) -> str:
        """Returns the new session's id, or the one that the same idempotency key was given."""
        row = SessionRow(
            id=str(uuid.uuid4()),
            created_at=time.time(),
            owner=owner,
            sdk_version=body.sdk_version,
            tags=body.tags,
            user_metadata=body.user_metadata,
            project_id=body.project_id,
            display_name=body.display_name,
            idempotency_key=idempotency_key,
        )
        stored = await self.journal.add_session(row)
        if stored.id == row.id:
            self._log.info("Session %s of %s, SDK %s", row.id, owner, body.sdk_version or "unknown")
        self.session_index.heard_of(stored.id)
        return stored.id

    async def session(self, session_id: str) -> SessionRow:
        """Raises `UnknownSession`."""
        row = await self.journal.session(session_id)
        if row is None:
            raise UnknownSession(f"There is no session {session_id[:200]!r}.")
        return row

    async def live_session(self, session_id: str) -> SessionRow:
        """A session that has not ended. Raises `UnknownSession`."""
        row = await self.session(session_id)
        if row.finished_at is not None:
            raise UnknownSession(f"Session {session_id} has ended; create a new ServiceClient.")
        return row

    async def finish_session(self, session_id: str, body: tinker.Finish) -> None:
        """End a session: its runs do what they have accepted and leave the engine, and its samplers
        leave it at once."""
        await self.session(session_id)
        await self.journal.finish_session(session_id, body.reason.type, body.detail)
        await self.sampling.end_session(session_id)
        await self._retire_runs()

    async def _retire_runs(self) -> None:
        """End the runs whose sessions have ended; an earlier life may not have come to it."""
        for run_id in await self.journal.unended_runs():
            if run_id not in self._retiring:
                self._retiring.add(run_id)
                self._spawn(self._retire(await self.registry.get(run_id)))

    async def _retire(self, run: Run) -> None:
        reason = f"The session of run {run.id} has ended."
        await self.registry.drained(run)
        async with run.lock:
            run.end(reason)
            await self.journal.update_run(run.id, ended=reason)
            await self.events.emit(run.id, "run_ended", step=run.step, reason=reason)
            await self.lives.unload(run)
        await self.sampling.end_run(run.id, reason)

    async def create_sampler(
        self, body: tinker.CreateSamplingSession, owner: str, *, allow_path: bool
    ) -> str:
        """Raises `UnknownSession`, and as `Sampling.create` does."""
        await self.live_session(body.session_id)
        return await self.sampling.create(body, owner, allow_path=allow_path)

    async def create_custom_loss(self, address: tinker.CustomLossAddress, payload: bytes) -> str:
        """Accept `create_custom_loss`; returns the future's id. Raises `UnknownSession`."""
        await self.live_session(address.session_id)
        # Requests are told apart by whose they are and their number; here the session is the owner.
        owner, number = address.session_id, address.custom_loss_seq_id
        request = Request(new_id(), owner, number, "create_custom_loss", payload)
        request_id = await self.futures.accept(request)
        if request_id == request.id:
            self.futures.open(request)
            self._spawn(self._custom_losses.create(request))
        return request_id

    # Runs

    async def create_run(
        self, body: tinker.CreateModel, payload: bytes, owner: str, *, allow_path: bool
    ) -> str:
        """Accept `create_model`; returns the future's id. Raises `UnknownSession`, and as
        `RunCreation.of_base_model` does."""
        await self.live_session(body.session_id)
        return await self._creation.of_base_model(body, payload, owner, allow_path=allow_path)

    async def create_run_from_checkpoint(
        self, body: tinker.CreateViaLoad, payload: bytes, owner: str, *, allow_path: bool
    ) -> str:
        """Accept create-via-load; returns the future's id. Raises `UnknownSession`, and as
        `RunCreation.of_checkpoint` does."""
        await self.live_session(body.session_id)
        return await self._creation.of_checkpoint(body, payload, owner, allow_path=allow_path)

    async def run(self, run_id: str) -> Run:
        """A run of this or of an earlier life of the server. Raises `UnknownRun`."""
        return await self.registry.get(run_id)

    async def copy_weights(self, body: tinker.CopyWeights, owner: str, key: str | None) -> str:
        """Copy a checkpoint; returns the copy's path. Raises as `Copies.copy` does, and
        `UnknownSession`."""
        if body.session_id is not None:
            await self.live_session(body.session_id)
        return str(await self.copies.copy(body, by=owner, key=key))

    async def submit(
        self, run_id: str, seq_id: int, kind: str, payload: bytes, *, forward_only: bool = False
    ) -> str:
        """Accept a request of a run; returns the future's id. Raises `UnknownRun`.

        The same `(run_id, seq_id)` gets the same future and is done once.
        """
        run = await self.registry.get(run_id)
        request = Request(new_id(), run_id, seq_id, kind, payload, forward_only)
        return await self.registry.submit(run, request)

    # Housekeeping

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(min(_TIDY_SECONDS, self._limits.session_expiry / 2))
            try:
                await self._tidy_results()
                await self.checkpoints.delete_expired()
                self.sampling.completions.tidy(self._limits.keep_results)
                await asyncio.to_thread(self.traces.tidy)
                await self._unload_silent_runs()
                await self._keep_within_budget()
            except Exception:
                self._log.exception("Housekeeping failed; it is tried again.")

    async def _tidy_results(self) -> None:
        await self.futures.tidy(self._limits.keep_results, self._limits.keep_unfetched)

    async def _unload_silent_runs(self) -> None:
        """Free the memory of runs whose clients have not been heard of for long."""
        for run in self.registry:
            silent = self.session_index.silent_seconds(run.row.session_id)
            if silent > self._limits.session_expiry and not run.lock.locked():
                async with run.lock:
                    if await self.lives.unload(run):
                        self._log.info("Run %s is unloaded; its client is silent.", run.id)
                        await self.events.emit(run.id, "run_unloaded", step=run.step)

    async def _keep_within_budget(self) -> None:
        if time.monotonic() - self._weighed < _WEIGH_SECONDS:
            return
        self._weighed = time.monotonic()
        await self.cleaning.keep_within(self._limits.history_bytes)

    async def _watch_clients(self) -> None:
        while True:
            await asyncio.sleep(min(self._sampling_limits.abandoned / 4, _TIDY_SECONDS))
            self.sampling.cancel_abandoned()
