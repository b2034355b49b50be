"""The parts of one server's Tinker service, made in the order in which they need one another.

Knows nothing of when they start and stop, nor of what they are asked.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .audit import Audit
from .background import Background
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
from .futures import Futures
from .history import History
from .housekeeping import Housekeeping
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
from .run_loading import RunLoader
from .run_store import RunStore
from .samplers import Samplers
from .sampling import Sampling, SamplingLimits
from .saving import Saving
from .session_index import SessionIndex
from .sessions import Sessions
from .signing import Signer
from .snapshots import Snapshots
from .steering import Steering
from .supervisor import EngineSupervisor
from .suspects import Suspects
from .traces import Traces
from .training import Trainer
from .training_engine import TrainingEngine
from .training_steps import TrainingSteps
from .turns import Turns


@dataclass(frozen=True)
class Limits:
    """What the service keeps to; times in seconds."""

    seq_gap: float  # for how long a missing request number is waited for
    keep_results: float  # for how long a result is kept after it was fetched
    session_expiry: float  # without a sign of a client, until its runs leave the engine's memory
    snapshot_overhead: float  # of the time that runs compute, what their snapshots may take
    history_bytes: int  # that the histories of all runs may take
    keep_unfetched: float = 7 * 86_400.0  # for how long a result is kept that nobody fetches


class Parts:
    """Each part, and what it is given of the others."""

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
        self._database = database
        self._state_dir = state_dir
        self._limits = limits
        self._log = log
        self._lock = DataLock(state_dir)
        self._background = Background()
        self._turns = Turns(sampling_share)
        self._make_records(event_limits)
        self._make_runs()
        self._make_sampling(sampling_limits)
        self._make_training()
        self._make_creation(lora_alpha)
        self._make_endings(sampling_limits.abandoned)

    def _make_records(self, event_limits: EventLimits | None) -> None:
        """What is remembered, and told of it."""
        database, state_dir = self._database, self._state_dir
        self.journal = Journal(database, server=uuid.uuid4().hex)
        self.run_store = RunStore(database)
        self.keys = Keys(database)
        self.audit = Audit(database)
        self.progress = self.supervisor.progress = Tasks(self._log)
        self.events = Events(database, event_limits, self.progress)
        self.checkpoints = Checkpoints(database, state_dir / "checkpoints")
        self.session_index = SessionIndex(database, state_dir / "checkpoints")
        self.copies = Copies(database, self.checkpoints)
        self.traces = Traces(database, state_dir / "traces")
        self.batches = Batches(database)
        self._backlog = Backlog(database)
        self.futures = Futures(self.journal, self._backlog)
        self.history = History(database, self._backlog)
        self.retention = Retention(database, state_dir / "snapshots", self.events, log=self._log)
        self.signer = Signer()
        self.identity = identity(state_dir)

    def _make_runs(self) -> None:
        """Runs, and what brings them back."""
        self._custom_losses = CustomLosses(self._database, self.supervisor, self.futures, self._log)
        self.registry = Registry(
            self.journal,
            self.run_store,
            self.history,
            self.futures,
            self._background.spawn,
            patience=self._limits.seq_gap,
            log=self._log,
        )
        self.snapshots = Snapshots(
            self.supervisor,
            self.history,
            self._state_dir / "snapshots",
            overhead=self._limits.snapshot_overhead,
            log=self._log,
        )
        self._revival = Revival(
            supervisor=self.supervisor,
            turns=self._turns,
            history=self.history,
            snapshots=self.snapshots,
            checkpoints=self.checkpoints,
            custom_losses=self._custom_losses,
            events=self.events,
            backlog=self._backlog,
            log=self._log,
        )
        self.lives = Lives(
            supervisor=self.supervisor,
            journal=self.journal,
            futures=self.futures,
            events=self.events,
            registry=self.registry,
            revival=self._revival,
            snapshots=self.snapshots,
            custom_losses=self._custom_losses,
            spawn=self._background.spawn,
            log=self._log,
        )

    def _make_sampling(self, limits: SamplingLimits) -> None:
        self._copier = Copier(self.supervisor, self.registry, self._revival)
        self.sampling = Sampling(
            samplers=Samplers(self._database),
            journal=self.journal,
            futures=self.futures,
            checkpoints=self.checkpoints,
            catalog=self.catalog,
            engine=self.supervisor,
            turns=self._turns,
            limits=limits,
            revive=self._copier.revive,
            log=self._log,
        )

    def _make_training(self) -> None:
        """What performs the requests of runs, and who has a say in it."""
        engine = TrainingEngine(self.supervisor, self._turns)
        self.saving = Saving(
            supervisor=self.supervisor,
            turns=self._turns,
            checkpoints=self.checkpoints,
            sampling=self.sampling,
            history=self.history,
            revival=self._revival,
            events=self.events,
            find_run=self.registry.get,
        )
        self.steering = Steering(
            supervisor=self.supervisor,
            backlog=self._backlog,
            history=self.history,
            events=self.events,
            revival=self._revival,
            registry=self.registry,
            saving=self.saving,
            log=self._log,
        )
        self.previews = Previews(
            store=PreviewStore(self._database, self._backlog, self.events),
            supervisor=self.supervisor,
            registry=self.registry,
            revival=self._revival,
            sampling=self.sampling,
            spawn=self._background.spawn,
            log=self._log,
        )
        self.run_loader = RunLoader(engine=engine, events=self.events, saving=self.saving)
        self.trainer = Trainer(
            supervisor=self.supervisor,
            futures=self.futures,
            events=self.events,
            loader=self.run_loader,
            steps=TrainingSteps(engine, self._custom_losses),
            saving=self.saving,
            revival=self._revival,
            snapshots=self.snapshots,
            suspects=Suspects(self._backlog),
            stepped=self.steering.stepped,
            preview=self.previews.stepped,
            log=self._log,
        )
        self.registry.trainer = self.trainer

    def _make_creation(self, lora_alpha: float) -> None:
        """What runs begin with, and experiments beside them."""
        self._creation = RunCreation(
            journal=self.journal,
            run_store=self.run_store,
            catalog=self.catalog,
            registry=self.registry,
            saving=self.saving,
            lora_alpha=lora_alpha,
        )
        self.lr_finder = LrFinder(
            supervisor=self.supervisor,
            turns=self._turns,
            history=self.history,
            snapshots=self.snapshots,
            revival=self._revival,
            custom_losses=self._custom_losses,
            events=self.events,
            registry=self.registry,
            log=self._log,
        )

    def _make_endings(self, abandoned: float) -> None:
        """Sessions, with which much ends, and what looks after the rest."""
        self.sessions = Sessions(
            run_store=self.run_store,
            session_index=self.session_index,
            registry=self.registry,
            lives=self.lives,
            sampling=self.sampling,
            events=self.events,
            spawn=self._background.spawn,
            log=self._log,
        )
        self.cleaning = Cleaning(
            retention=self.retention,
            registry=self.registry,
            sessions=self.session_index,
            supervisor=self.supervisor,
        )
        self._housekeeping = Housekeeping(
            futures=self.futures,
            checkpoints=self.checkpoints,
            sampling=self.sampling,
            traces=self.traces,
            registry=self.registry,
            session_index=self.session_index,
            lives=self.lives,
            events=self.events,
            cleaning=self.cleaning,
            keep_results=self._limits.keep_results,
            keep_unfetched=self._limits.keep_unfetched,
            session_expiry=self._limits.session_expiry,
            history_bytes=self._limits.history_bytes,
            abandoned=abandoned,
            log=self._log,
        )
