"""Saves runs: as checkpoints, as copies to sample from, and states of the past as checkpoints.

A request that is done twice, because the server died in between, finds what it wrote itself.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from ..wire import ops, tinker
from ..wire.sampling import SnapshotSampler
from .checkpoints import (
    CheckpointPath,
    Checkpoints,
    UnknownCheckpoint,
    check_name,
    parse_path,
)
from .engine_client import EngineDied
from .events import Events
from .futures import Request, success
from .history import History, HistoryGone
from .outcome import Outcome
from .revival import Revival
from .runs import Run
from .sampling import Sampling
from .schema import CheckpointRow
from .supervisor import EngineSupervisor
from .turns import Turns

_DEATHS = 4  # of engines while the checkpoint of a step is made, which is then given up
_OF_STEP = re.compile(r"step=(\d{1,15})(?:\+branch=(\d{1,9}))?")


class FindsRuns(Protocol):
    async def __call__(self, run_id: str) -> Run: ...


class Saving:
    """Writes what runs are, or were, to where it outlives the engine."""

    def __init__(
        self,
        *,
        supervisor: EngineSupervisor,
        turns: Turns,
        checkpoints: Checkpoints,
        sampling: Sampling,
        history: History,
        revival: Revival,
        events: Events,
        find_run: FindsRuns,
    ) -> None:
        self._supervisor = supervisor
        self._turns = turns
        self._checkpoints = checkpoints
        self._sampling = sampling
        self._history = history
        self._revival = revival
        self._events = events
        self._find_run = find_run

    # What clients ask for

    async def weights(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.SaveWeights, request.payload)
        path = _path(run, "weights", body.path, request)
        hint = "choose another name or pass overwrite=True"
        if not await self._written(path, request, overwrite=body.overwrite, hint=hint):
            await self._save(run, path, body.ttl_seconds, request, body.user_metadata)
        return Outcome(success({"path": str(path), "type": "save_weights"}))

    async def for_sampler(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.SaveWeightsForSampler, request.payload)
        if body.sampling_session_seq_id is not None or body.kind == "inflight":
            return await self._copy(run, body)
        path = _path(run, "sampler_weights", body.path, request)
        if not await self._written(path, request, overwrite=body.overwrite):
            await self._save(run, path, body.ttl_seconds, request, body.user_metadata)
        return Outcome(success({"path": str(path), "type": "save_weights_for_sampler"}))

    async def _copy(self, run: Run, body: tinker.SaveWeightsForSampler) -> Outcome:
        target = self._sampling.copy_of(run, body)
        await self._ask(run, SnapshotSampler(target.name, run.id))
        sampler = await self._sampling.add_copy(run, body, target)
        answer = {"path": None, "sampling_session_id": sampler, "type": "save_weights_for_sampler"}
        return Outcome(success(answer))

    async def external(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.SaveWeightsExternal, request.payload)
        path = _path(run, "external_weights", body.path, request)
        row = await self._written(path, request)
        if row is None:
            recipients = body.age_encryption_recipients
            row = await self._save(run, path, body.ttl_seconds, request, recipients=recipients)
        answer = {"path": str(path), "size_bytes": row.size_bytes, "type": "save_weights_external"}
        return Outcome(success(answer))

    async def _written(
        self,
        path: CheckpointPath,
        request: Request,
        *,
        overwrite: bool = False,
        hint: str = "choose another name",
    ) -> CheckpointRow | None:
        """The checkpoint, if this very request wrote it already. Raises `OpError` if it is
        another's and not to be overwritten."""
        row = await self._checkpoints.find(path)
        if row is None or row.request_id == request.id:
            return row
        if not overwrite:
            raise ops.OpError(f"There is a checkpoint {path} already; {hint}.")
        return None

    async def _save(
        self,
        run: Run,
        path: CheckpointPath,
        ttl_seconds: int | None,
        request: Request,
        user_metadata: dict[str, str] | None = None,
        *,
        recipients: list[str] | None = None,
    ) -> CheckpointRow:
        async with self._checkpoints.lock(path):
            return await self._write(
                run,
                run.id,
                path,
                run.generation,
                recipients=recipients,
                user_metadata=user_metadata,
                expires_at=None if ttl_seconds is None else time.time() + ttl_seconds,
                request_id=request.id,
            )

    async def _write(
        self,
        run: Run,
        name: str,
        path: CheckpointPath,
        generation: int,
        *,
        recipients: list[str] | None = None,
        **values: Any,
    ) -> CheckpointRow:
        """Save what the engine calls `name`; the checkpoint's lock is held."""
        folder = str(self._checkpoints.folder(path))
        base = run.row.hub_id or run.row.base_path  # what PEFT can load the base from
        op = ops.SaveCheckpoint(name, path.kind, folder, base, recipients)
        async with self._turns.training():
            result, _ = await self._supervisor.request(op, generation=generation)
        info = ops.SaveInfo(**result)
        event = partial(self._events.record, run_id=run.id, kind="checkpoint_saved")
        return await self._checkpoints.add(
            path,
            by=run.row.owner,
            record=partial(event, step=info.step, path=str(path)),
            base_model=run.row.base_model,
            base_path=run.row.base_path,
            lora=asdict(run.lora),
            step=info.step,
            size_bytes=info.size_bytes,
            **{"user_metadata": None, "expires_at": None, "request_id": None, **values},
        )

    async def _ask(self, run: Run, op: ops.Op) -> None:
        async with self._turns.training():
            await self._supervisor.request(op, generation=run.generation)

    # Checkpoints by their paths, also those of steps

    async def loadable(self, text: str) -> Loadable:
        """A checkpoint that exists, or that of a run's step, which is made.

        Raises `OpError`, `UnknownCheckpoint` and `HistoryGone`.
        """
        path = parse_path(text)
        if step_of(path) is not None:
            path = await self.make_step(path)
        row = await self._checkpoints.get(path)
        return Loadable(str(path), str(self._checkpoints.folder(path)), row.created_at)

    async def describe(self, text: str) -> CheckpointRow:
        """The row of a checkpoint, or what it will be of a run's step. Raises as `loadable`."""
        path = parse_path(text)
        if step_of(path) is None:
            return await self._checkpoints.get(path)
        state = await self._state(path)
        row = await self._made(state)
        if row is not None:
            return row
        run = state.run
        await self._history.plan(run.id, run.place, state.position)
        return CheckpointRow(
            run_id=run.id,
            kind=path.kind,
            name=state.path.name,
            base_model=run.row.base_model,
            base_path=run.row.base_path,
            lora=asdict(run.lora),
            step=state.step,
            created_at=run.row.created_at,
            size_bytes=0,
            public=False,
        )

    async def make_step(self, path: CheckpointPath) -> CheckpointPath:
        """Write the checkpoint of a run's step, beside what the run does now, unless it is there;
        returns its full path. Raises as `loadable`."""
        state = await self._state(path)
        async with self._checkpoints.lock(state.path):
            if await self._made(state) is None:
                await self._make(state)
        return state.path

    async def _made(self, state: _State) -> CheckpointRow | None:
        """The checkpoint of a state, if it is there. One of the same name may be of another: where
        weights were loaded, steps are counted anew."""
        row = await self._checkpoints.find(state.path)
        return row if row is not None and row.request_id == state.mark else None

    async def _make(self, state: _State) -> None:
        """Have the engine make a state and write it; the checkpoint's lock is held."""
        for deaths in range(1, _DEATHS + 1):
            try:
                async with self._revival.beside(state.run, state.position) as (name, generation):
                    await self._write(
                        state.run, name, state.path, generation, request_id=state.mark
                    )
                return
            except EngineDied as error:
                if deaths == _DEATHS:
                    sentence = f"The checkpoint {state.path} could not be made: {error}."
                    raise ops.OpError(sentence, "server") from error

    async def _state(self, path: CheckpointPath) -> _State:
        """What a step's path means. Raises `UnknownCheckpoint`."""
        found = step_of(path)
        assert found is not None
        step, branch = found
        try:
            run = await self._find_run(path.run_id)
            branch = run.place.branch if branch is None else branch
            position = await self._history.state_of_step(run.id, run.place, step, branch)
        except (LookupError, HistoryGone) as error:
            raise UnknownCheckpoint(f"There is no checkpoint {path}. {error.args[0]}") from None
        return _State(run, position, step, path_of_step(run.id, step, branch))


@dataclass(frozen=True)
class Loadable:
    """A checkpoint's files, and what tells it from one that takes its name later."""

    path: str
    folder: str
    created_at: float


@dataclass(frozen=True)
class _State:
    """A state of a run's past, and the checkpoint that is made of it."""

    run: Run
    position: int
    step: int
    path: CheckpointPath

    @property
    def mark(self) -> str:
        """What the row of its checkpoint has in the place of a request."""
        return f"position {self.position}"


def step_of(path: CheckpointPath) -> tuple[int, int | None] | None:
    """The step, and the branch if it is named, that a path stands for."""
    found = _OF_STEP.fullmatch(path.name)
    if found is None or path.kind != "weights":
        return None
    return int(found[1]), None if found[2] is None else int(found[2])


def path_of_step(run_id: str, step: int, branch: int | None = None) -> CheckpointPath:
    """What the checkpoint of a run's step is called; without a branch, of the run's last one."""
    suffix = "" if branch is None else f"+branch={branch}"
    return CheckpointPath(run_id, "weights", f"step={step}{suffix}")


def _path(run: Run, kind: ops.CheckpointKind, name: str | None, request: Request) -> CheckpointPath:
    path = CheckpointPath(run.id, kind, check_name(name or f"{request.seq_id:06d}"))
    if step_of(path) is not None:
        raise ops.OpError(f"{path.name!r} is kept for the run's own steps; choose another name.")
    return path
