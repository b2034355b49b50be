"""The Tinker service of one Jupyter server: its parts together, and what the HTTP edge asks.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..wire import ops, tinker
from ..wire.events import Kind
from ..wire.sampling import SnapshotSampler
from .audit import Audit
from .backlog import Backlog
from .catalog import BaseModel, Catalog
from .checkpoints import Checkpoints
from .copies import Copies
from .custom_losses import CustomLosses
from .database import Database
from .events import EventLimits, Events
from .futures import Futures, Request
from .history import History, HistoryGone
from .journal import Journal
from .keys import Keys
from .registry import Registry, why_ended
from .revival import Revival
from .runs import Run, id_of_run
from .samplers import Samplers, Target
from .sampling import Sampling, SamplingLimits
from .saving import Saving
from .schema import RunRow, SessionRow
from .session_index import SessionIndex
from .signing import Signer
from .snapshots import Snapshots
from .steering import Steering
from .supervisor import EngineDied, EngineSupervisor
from .traces import Traces
from .training import Trainer, unsupported_optimizer
from .turns import Turns

# More would be a mistake: an adapter of full rank already holds as much as the matrix it adapts.
_LARGEST_RANK = 4096
_TIDY_SECONDS = 30.0
_FAREWELL_SECONDS = 10.0  # for the last snapshots


class UnknownSession(LookupError):
    """No session has this id, or it has ended; the message says which."""


@dataclass(frozen=True)
class Limits:
    """Times the service keeps, in seconds, and parts of them."""

    seq_gap: float  # for how long a missing request number is waited for
    keep_results: float  # for how long a result is kept after it was fetched
    snapshot_overhead: float  # of the time that runs compute, what their snapshots may take


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
        self.events = Events(database, event_limits)
        self.checkpoints = Checkpoints(database, state_dir / "checkpoints")
        self.session_index = SessionIndex(database, state_dir / "checkpoints")
        self.copies = Copies(database, self.checkpoints)
        self.traces = Traces(database, state_dir / "traces")
        self._backlog = Backlog(database)
        self.futures = Futures(self.journal, self._backlog)
        self.signer = Signer()
        self._custom_losses = CustomLosses(database, supervisor, self.futures, log)
        self._database = database
        self._limits = limits
        self._sampling_limits = sampling_limits
        self._lora_alpha = lora_alpha
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
        self.sampling = Sampling(
            samplers=Samplers(database),
            journal=self.journal,
            futures=self.futures,
            checkpoints=self.checkpoints,
            catalog=catalog,
            engine=supervisor,
            turns=turns,
            limits=sampling_limits,
            revive=self._revive_copy,
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
            log=log,
        )
        self.registry.trainer = self.trainer
        supervisor.on_start = self._engine_started
        supervisor.on_death = self._engine_died

    def start(self) -> None:
        """Go on with what was pending, and begin the housekeeping. Called on the event loop."""
        self.events.start()
        self._spawn(self._resume())
        self._spawn(asyncio.to_thread(self.checkpoints.sweep))
        self._spawn(asyncio.to_thread(self.snapshots.sweep))
        self._spawn(self._tidy())
        self._spawn(self._watch_clients())

    async def stop(self) -> None:
        """End the engine and close the database."""
        await self.events.close()
        for task in self._background:
            task.cancel()
        await self.registry.close()
        await self.sampling.close()
        await self._keep_runs()
        await self.supervisor.stop()
        await self.futures.stored()
        with suppress(Exception):
            await self.futures.tidy(self._limits.keep_results)
        await self._backlog.close()
        await self._database.close()

    # The lives of the server and of the engine

    async def _resume(self) -> None:
        """Go on with what an earlier life of the server accepted and had not done."""
        try:
            await self.registry.resume()
            for session_id in await self.journal.owners_of_pending(["create_custom_loss"]):
                for row, payload in await self.journal.pending(session_id):
                    if row.server == self.journal.server:
                        continue
                    request = Request(row.id, row.run_id, row.seq_id, row.kind, payload)
                    self.futures.open(request)
                    self._spawn(self._custom_losses.create(request))
        except Exception:
            self._log.exception("What was pending cannot be gone on with.")
        finally:
            self.futures.resumed.set()

    async def _keep_runs(self) -> None:
        """Have snapshots of all runs in the engine, so that a new server is quick to go on."""
        with suppress(Exception):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await asyncio.gather(*map(self._keep, self.registry), return_exceptions=True)

    async def _keep(self, run: Run) -> None:
        async with run.lock:
            if self.supervisor.holds(run.generation):
                await self.snapshots.keep(run)

    def _engine_started(self, status: ops.EngineStatus) -> None:
        self._spawn(self._tell("engine_started", **asdict(status)))

    def _engine_died(self, reason: str) -> None:
        self._spawn(self._tell("engine_died", reason=reason))
        for run in self.registry:
            if run.generation == self.supervisor.generation and run.ended is None:
                self._spawn(self._revive(run))

    async def _tell(self, kind: Kind, **data: Any) -> None:
        await self.events.emit(None, kind, **data)

    async def _revive(self, run: Run) -> None:
        async with run.lock:
            try:
                await self._revival.hold(run)
            except (EngineDied, ops.OpError, HistoryGone) as error:
                self._log.error("Run %s is not revived yet: %s", run.id, error)

    async def _revive_copy(self, target: Target, position: int) -> None:
        """Have the engine make a copy of a run's weights once more, as they were."""
        assert target.run is not None
        run = await self.registry.get(target.run)
        generation = await self.supervisor.ensure_started()
        name = f"{run.id}@{position}:copy"
        try:
            await self._revival.build(run, name, position, generation)
            await self.supervisor.request(SnapshotSampler(target.name, name), generation=generation)
        finally:
            if self.supervisor.holds(generation):
                await self.supervisor.request(ops.UnloadRun(name), generation=generation)

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
        for run_id in await self.journal.living_runs(session_id):
            run = await self.registry.get(run_id)
            self._spawn(self._retire(run, f"The session of run {run.id} has ended."))

    async def _retire(self, run: Run, reason: str) -> None:
        await self.registry.drained(run)
        async with run.lock:
            run.end(reason)
            await self.journal.update_run(run.id, ended=reason)
            await self.events.emit(run.id, "run_ended", step=run.step, reason=reason)
            await self._unload(run)
        await self.sampling.end_run(run.id, reason)

    async def _unload(self, run: Run) -> None:
        """Free a run's memory in the engine; a snapshot of it is kept. Its lock is held."""
        if not self.supervisor.holds(run.generation):
            return
        with suppress(EngineDied, ops.OpError):
            await self.snapshots.keep(run)
            await self.supervisor.request(ops.UnloadRun(run.id), generation=run.generation)
        run.generation = 0

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
        request = _request(
            address.session_id, address.custom_loss_seq_id, "create_custom_loss", payload
        )
        request_id = await self.futures.accept(request)
        if request_id == request.id:
            self.futures.open(request)
            self._spawn(self._custom_losses.create(request))
        return request_id

    # Runs

    async def create_run(
        self, body: tinker.CreateModel, payload: bytes, owner: str, *, allow_path: bool
    ) -> str:
        """Accept `create_model`; returns the future's id.

        Raises `UnknownSession`, `catalog.UnknownModelError` and `BadRequest`.
        """
        await self.live_session(body.session_id)
        model = await asyncio.to_thread(
            self.catalog.resolve, body.base_model, allow_path=allow_path
        )
        lora = self._lora(body)
        row = self._run_row(body, body.base_model, model, asdict(lora), owner)
        return await self._admit(Run(row, lora), "create_model", payload)

    async def create_run_from_checkpoint(
        self, body: tinker.CreateViaLoad, payload: bytes, owner: str, *, allow_path: bool
    ) -> str:
        """Accept create-via-load; returns the future's id.

        Raises as `create_run` does, `OpError` and `checkpoints.UnknownCheckpoint`.
        """
        await self.live_session(body.session_id)
        _refuse_optimizer(body.optimizer_config)
        saved = await self.saving.describe(body.path)
        base_model = body.base_model or saved.base_model
        # A base that a path named once is still the owner's choice when its checkpoint is loaded.
        own_path = base_model == saved.base_model
        model = await asyncio.to_thread(
            self.catalog.resolve, base_model, allow_path=allow_path or own_path
        )
        row = self._run_row(body, base_model, model, saved.lora, owner)
        return await self._admit(Run(row, ops.LoraSpec(**saved.lora)), "create_via_load", payload)

    def _run_row(
        self,
        body: tinker.CreateModel | tinker.CreateViaLoad,
        base_model: str,
        model: BaseModel,
        lora: dict[str, Any],
        owner: str,
    ) -> RunRow:
        now = time.time()
        return RunRow(
            id=id_of_run(body.session_id, body.model_seq_id),
            session_id=body.session_id,
            owner=owner,
            base_model=base_model,
            base_path=str(model.path),
            hub_id=model.hub_id,
            architecture=model.architecture,
            lora=lora,
            user_metadata=body.user_metadata,
            created_at=now,
            last_request_at=now,
            started_from=body.path if isinstance(body, tinker.CreateViaLoad) else None,
        )

    def _lora(self, body: tinker.CreateModel) -> ops.LoraSpec:
        _refuse_optimizer(body.optimizer_config)
        config = body.lora_config or tinker.LoraConfig()
        if not 1 <= config.rank <= _LARGEST_RANK:
            raise tinker.BadRequest(
                f"lora_config.rank must lie between 1 and {_LARGEST_RANK}, and is {config.rank}."
            )
        seed = config.seed if config.seed is not None else secrets.randbits(31)
        return ops.LoraSpec(
            rank=config.rank,
            seed=seed,
            alpha=self._lora_alpha,
            train_attn=config.train_attn,
            train_mlp=config.train_mlp,
            train_unembed=config.train_unembed,
        )

    async def _admit(self, run: Run, kind: str, payload: bytes) -> str:
        known = await self.journal.run(run.id)
        if known is not None and known.copied_from is not None:
            raise tinker.BadRequest(why_ended(known))
        request = _request(run.id, 0, kind, payload)
        row = request.row(self.journal.server)
        request_id = await self.journal.add_run(run.row, row, payload)
        if request_id == request.id:
            self.registry.add(run, request)
        return request_id

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
        request = _request(run_id, seq_id, kind, payload, forward_only=forward_only)
        return await self.registry.submit(run, request)

    # Housekeeping

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            try:
                await self.futures.tidy(self._limits.keep_results)
                await self.checkpoints.delete_expired()
                self.sampling.completions.tidy(self._limits.keep_results)
                await asyncio.to_thread(self.traces.tidy)
            except Exception:
                self._log.exception("Housekeeping failed; it is tried again.")

    async def _watch_clients(self) -> None:
        while True:
            await asyncio.sleep(min(self._sampling_limits.abandoned / 4, _TIDY_SECONDS))
            self.sampling.cancel_abandoned()


def _request(
    run_id: str, seq_id: int, kind: str, payload: bytes, *, forward_only: bool = False
) -> Request:
    return Request(uuid.uuid4().hex, run_id, seq_id, kind, payload, forward_only)


def _refuse_optimizer(config: tinker.OptimizerConfig | None) -> None:
    if config is not None and config.type != "adamw":
        raise tinker.BadRequest(unsupported_optimizer(config.type))
