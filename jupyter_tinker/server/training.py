"""Does the requests of runs: from a stored payload to an operation of the engine to a result.

Payloads are checked here and not when they are accepted, so that what is wrong with one comes back
through its future and the run's order stays whole. Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from ..wire import ops, tinker
from ..wire.sampling import SnapshotSampler
from .checkpoints import (
    CheckpointPath,
    Checkpoints,
    UnknownCheckpoint,
    check_name,
    parse_path,
)
from .custom_losses import CustomLosses
from .futures import Futures, Request, failure, success
from .journal import PROTOBUF_TYPE, Journal, Result
from .runs import Run
from .sampling import Sampling
from .schema import StepRow
from .supervisor import EngineDied, EngineSupervisor
from .turns import Turns

Outcome = tuple[Result, StepRow | None]


class Trainer:
    """Performs the requests of all runs."""

    def __init__(
        self,
        *,
        supervisor: EngineSupervisor,
        journal: Journal,
        futures: Futures,
        checkpoints: Checkpoints,
        custom_losses: CustomLosses,
        sampling: Sampling,
        turns: Turns,
        log: Any,
    ) -> None:
        self._supervisor = supervisor
        self._journal = journal
        self._futures = futures
        self._checkpoints = checkpoints
        self._custom_losses = custom_losses
        self._sampling = sampling
        self._turns = turns
        self._log = log
        self.loading: dict[str, str] = {}  # names of base models, by the run that is being made
        self.computing: dict[str, Request] = {}  # what each run is at, by the run's id
        self._kinds: dict[str, Callable[[Run, Request], Awaitable[Outcome]]] = {
            "create_model": self._create_model,
            "create_via_load": self._create_via_load,
            "forward_backward": self._forward_backward,
            "optim_step": self._optim_step,
            "load_weights": self._load_weights,
            "save_weights": self._save_weights,
            "save_weights_for_sampler": self._save_for_sampler,
            "save_weights_external": self._save_external,
        }

    async def perform(self, run: Run, request: Request) -> None:
        """Do one request and have its future completed; never raises."""
        run.totals.wait_seconds += time.monotonic() - request.accepted
        step = None
        self.computing[run.id] = request
        try:
            if run.ended is not None:
                raise ops.OpError(run.ended, "server")
            result, step = await self._kinds[request.kind](run, request)
        except ops.OpError as error:
            result = failure(error.message, error.category)
        except tinker.BadRequest as error:
            result = failure(str(error), "user")
        except UnknownCheckpoint as error:
            result = failure(str(error.args[0]), "user")
        except EngineDied as error:
            run.ended = _engine_gone(run)
            result = failure(f"{run.ended} ({error})", "server")
        except Exception as error:
            self._log.exception("Request %s (%s) failed.", request.id, request.kind)
            result = failure(f"The server failed: {type(error).__name__}: {error}", "server")
        finally:
            self.computing.pop(run.id, None)
        if result.failed:
            self._note_failure(run, request, result)
        self._futures.complete(request, result, step)

    async def give_up(self, run: Run, request: Request, reason: str) -> None:
        """Complete a request that will not be done."""
        result = failure(reason, "user")
        self._note_failure(run, request, result)
        self._futures.complete(request, result)

    def _note_failure(self, run: Run, request: Request, result: Result) -> None:
        if request.seq_id == 0:
            run.ended = run.ended or "This run could not be created."
        elif request.kind == "forward_backward" and not request.forward_only:
            run.spoiled = f"forward_backward number {request.seq_id} before it failed"
        self._log.warning(
            "Run %s: %s number %d failed: %s",
            run.id,
            request.kind,
            request.seq_id,
            result.body.decode(errors="replace")[:500],
        )

    async def _ask(self, run: Run, op: ops.Op) -> tuple[dict[str, Any], list[Any]]:
        """Ask the engine that holds the run; another engine knows nothing of it."""
        if not self._supervisor.running or self._supervisor.generation != run.generation:
            raise EngineDied("the engine that held it is gone")
        async with self._turns.training():
            return await self._supervisor.request(op)

    # Creating

    async def _create_model(self, run: Run, _: Request) -> Outcome:
        op = ops.CreateRun(run.id, run.row.base_model, run.row.base_path, run.lora)
        await self._create(run, op)
        return success({"model_id": run.id, "type": "create_model"}), None

    async def _create_via_load(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.CreateViaLoad, request.payload)
        folder = await self._saved(body.path)
        op = ops.LoadRun(run.id, run.row.base_model, run.row.base_path, folder, body.optimizer)
        await self._create(run, op)
        return success({"path": body.path, "model_id": run.id, "type": "load_weights"}), None

    async def _create(self, run: Run, op: ops.Op) -> None:
        run.generation = await self._supervisor.ensure_started()
        self.loading[run.id] = run.row.base_model
        try:
            result, _ = await self._ask(run, op)
        finally:
            del self.loading[run.id]
        run.lora = ops.run_info(result).lora
        await self._journal.update_run(run.id, lora=asdict(run.lora))

    async def _saved(self, path: str) -> str:
        """The folder of a checkpoint that exists."""
        parsed = parse_path(path)
        await self._checkpoints.get(parsed)
        return str(self._checkpoints.folder(parsed))

    async def _load_weights(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.LoadWeights, request.payload)
        folder = await self._saved(body.path)
        await self._ask(run, ops.LoadWeights(run.id, folder, body.optimizer))
        run.spoiled = None
        answer = {"path": body.path, "model_id": run.id, "type": "load_weights"}
        return success(answer), None

    # Training

    async def _forward_backward(self, run: Run, request: Request) -> Outcome:
        definition = await self._custom_losses.definition(run.row.session_id, request.payload)
        op = ops.ForwardBackward(run.id, request.payload, definition)
        result, buffers = await self._ask(run, op)
        if not request.forward_only:
            run.totals.add(ops.ForwardBackwardStats(**result))
        return Result(bytes(buffers[0]), PROTOBUF_TYPE), None

    async def _optim_step(self, run: Run, request: Request) -> Outcome:
        adam = _adam(tinker.parse(tinker.OptimStep, request.payload))
        totals = run.totals
        if run.spoiled is not None:
            reason, run.spoiled = run.spoiled, None
            run.totals = type(totals)()
            await self._ask(run, ops.ZeroGrad(run.id))
            raise ops.OpError(
                f"This optim_step was not done because {reason}; the gradients of the step were "
                "dropped and the weights are as they were. Send the step's forward_backward again."
            )
        result, _ = await self._ask(run, ops.OptimStep(run.id, adam))
        run.totals = type(totals)()
        stats = ops.OptimStepStats(**result)
        row = totals.row(run.id, time.time(), stats)
        metrics: dict[str, float] = {
            "optimizer_step": stats.step,
            "grad_norm": stats.grad_norm,
            "update_norm": stats.update_norm,
            "learning_rate": stats.learning_rate,
        }
        return success({"metrics": metrics, "type": "optim_step"}), row

    # Saving

    async def _save_weights(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.SaveWeights, request.payload)
        path = _path(run, "weights", body.path, request)
        if not body.overwrite and await self._checkpoints.exists(path):
            raise ops.OpError(
                f"There is a checkpoint {path} already; choose another name or pass overwrite=True."
            )
        await self._save(run, path, body.ttl_seconds, body.user_metadata)
        return success({"path": str(path), "type": "save_weights"}), None

    async def _save_for_sampler(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.SaveWeightsForSampler, request.payload)
        if body.sampling_session_seq_id is not None or body.kind == "inflight":
            return await self._copy_for_sampler(run, body), None
        path = _path(run, "sampler_weights", body.path, request)
        if not body.overwrite and await self._checkpoints.exists(path):
            raise ops.OpError(f"There is a checkpoint {path} already; choose another name.")
        await self._save(run, path, body.ttl_seconds, body.user_metadata)
        return success({"path": str(path), "type": "save_weights_for_sampler"}), None

    async def _copy_for_sampler(self, run: Run, body: tinker.SaveWeightsForSampler) -> Result:
        target = self._sampling.copy_of(run, body)
        await self._ask(run, SnapshotSampler(target.name, run.id))
        sampler = await self._sampling.add_copy(run, body, target)
        return success(
            {"path": None, "sampling_session_id": sampler, "type": "save_weights_for_sampler"}
        )

    async def _save_external(self, run: Run, request: Request) -> Outcome:
        body = tinker.parse(tinker.SaveWeightsExternal, request.payload)
        path = _path(run, "external_weights", body.path, request)
        if await self._checkpoints.exists(path):
            raise ops.OpError(f"There is a checkpoint {path} already; choose another name.")
        size = await self._save(
            run, path, body.ttl_seconds, None, recipients=body.age_encryption_recipients
        )
        answer = {"path": str(path), "size_bytes": size, "type": "save_weights_external"}
        return success(answer), None

    async def _save(
        self,
        run: Run,
        path: CheckpointPath,
        ttl_seconds: int | None,
        user_metadata: dict[str, str] | None,
        *,
        recipients: list[str] | None = None,
    ) -> int:
        folder = str(self._checkpoints.folder(path))
        base = run.row.hub_id or run.row.base_path  # what PEFT can load the base from
        op = ops.SaveCheckpoint(run.id, path.kind, folder, base, recipients)
        async with self._checkpoints.lock(path):
            result, _ = await self._ask(run, op)
            info = ops.SaveInfo(**result)
            await self._checkpoints.add(
                path,
                by=run.row.owner,
                base_model=run.row.base_model,
                base_path=run.row.base_path,
                lora=asdict(run.lora),
                step=info.step,
                size_bytes=info.size_bytes,
                user_metadata=user_metadata,
                expires_at=None if ttl_seconds is None else time.time() + ttl_seconds,
            )
        return info.size_bytes


def _adam(body: tinker.OptimStep) -> ops.AdamParams:
    if body.optimizer_params is not None:
        raise ops.OpError(unsupported_optimizer(body.optimizer_params.get("type")))
    if body.adam_params is None:
        raise ops.OpError("optim_step needs adam_params.")
    return body.adam_params.params()


def unsupported_optimizer(kind: object) -> str:
    """The sentence that refuses an optimizer other than AdamW."""
    why = ", because constants of its update are not published" if kind == "dimuon" else ""
    return f"The optimizer {str(kind)[:60]!r} is not supported{why}; use AdamW, the default."


def _path(run: Run, kind: ops.CheckpointKind, name: str | None, request: Request) -> CheckpointPath:
    return CheckpointPath(run.id, kind, check_name(name or f"{request.seq_id:06d}"))


def _engine_gone(run: Run) -> str:
    return (
        f"The engine that held run {run.id} ended, and with it the run's weights; "
        "start a new client from its last checkpoint."
    )
