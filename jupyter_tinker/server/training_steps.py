"""Steps of training: batches add up gradients, and the optimizer uses them or drops them.

Knows nothing of the order of requests, nor of engines that die.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ..wire import ops, tinker
from .custom_losses import CustomLosses
from .futures import Request, failure, success
from .journal import PROTOBUF_TYPE, Result
from .outcome import Change, Outcome
from .runs import Run, Spoiled, StepTotals
from .schema import StepRow
from .training_engine import TrainingEngine


class TrainingSteps:
    """Does the parts of a step, each of which is a request."""

    def __init__(self, engine: TrainingEngine, custom_losses: CustomLosses) -> None:
        self._engine = engine
        self._custom_losses = custom_losses

    async def forward_backward(self, run: Run, request: Request) -> Outcome:
        """Compute a batch, and add up its gradients unless it is `forward_only`."""
        definition = await self._custom_losses.definition(run.row.session_id, request.payload)
        op = ops.ForwardBackward(run.id, request.payload, definition)
        reply, buffers = await self._engine.ask(run, op)
        result = Result(bytes(buffers[0]), PROTOBUF_TYPE)
        if request.forward_only:
            return Outcome(result)
        stats = ops.ForwardBackwardStats(**reply)
        run.totals.add(stats)
        run.computed += stats.seconds
        if stats.not_finite is not None:
            spoiled = Spoiled(stats.not_finite, skips=True, not_finite=True)
            return Outcome(result, spoil(run, spoiled, stats=asdict(stats)))
        change = Change("forward_backward", of_payload=True, data={"stats": asdict(stats)})
        return Outcome(result, change)

    async def optim_step(self, run: Run, request: Request) -> Outcome:
        """Have the optimizer use the gradients, unless they must not be used."""
        asked = _adam_of(tinker.parse(tinker.OptimStep, request.payload))
        used = run.controls.adam(asked, step=run.step)
        if run.spoiled is not None:
            return await self._not_stepped(run, asked, used, run.spoiled)
        reply, _ = await self._engine.ask(run, ops.OptimStep(run.id, used))
        stats = ops.OptimStepStats(**reply)
        change = Change("zero_grad")
        if stats.skipped is None:
            data = {"adam": asdict(used), "grad_norm": stats.grad_norm}
            change = Change("optim_step", data=data)
        outcome = _outcome_of_step(run, asked, used, stats, change)
        return replace(outcome, not_finite=stats.skipped is not None)

    async def _not_stepped(
        self, run: Run, asked: ops.AdamParams, used: ops.AdamParams, spoiled: Spoiled
    ) -> Outcome:
        """Drop the gradients that must not be used."""
        await self._engine.ask(run, ops.ZeroGrad(run.id))
        if spoiled.skips:
            stats = ops.OptimStepStats(
                step=run.step,
                grad_norm=None,
                update_norm=None,
                learning_rate=used.learning_rate,
                seconds=0.0,
                memory_bytes=0,
                skipped=spoiled.reason,
            )
            outcome = _outcome_of_step(run, asked, used, stats, Change("zero_grad"))
            return replace(outcome, not_finite=spoiled.not_finite)
        run.totals, run.spoiled = StepTotals(), None
        sentence = (
            f"This optim_step was not done because {spoiled.reason}; the gradients of the step "
            "were dropped and the weights are as they were. Send the step's forward_backward again."
        )
        return Outcome(failure(sentence, "user"), Change("zero_grad"))


def _outcome_of_step(
    run: Run,
    asked: ops.AdamParams,
    used: ops.AdamParams,
    stats: ops.OptimStepStats,
    change: Change,
) -> Outcome:
    run.step, run.asked, run.spoiled = stats.step, asked, None
    run.computed += stats.seconds
    row = run.totals.row(run, stats, asked, used)
    run.totals = StepTotals()
    return Outcome(success(_metrics(row)), change, step=row)


def spoil(run: Run, spoiled: Spoiled, **data: Any) -> Change:
    """Mark a run: its gradients must not be used."""
    run.spoiled = spoiled
    return Change("spoiled", data={**asdict(spoiled), **data})


def _metrics(row: StepRow) -> dict[str, Any]:
    """An optim_step's answer. What was asked and what was used, where a person may differ."""
    names = ("grad_norm", "update_norm", "learning_rate", "grad_clip_norm", "weight_decay")
    values: dict[str, float | None] = {"optimizer_step": row.step}
    for name in names:
        values[name] = getattr(row, name)
        if (requested := f"{name}_requested") in StepRow.__table__.columns:
            values[requested] = getattr(row, requested)
    if row.skipped is not None:
        values["skipped"] = 1.0
    metrics = {name: value for name, value in values.items() if value is not None}
    return {"metrics": metrics, "type": "optim_step"}


def _adam_of(body: tinker.OptimStep) -> ops.AdamParams:
    """What an optim_step asks for. Raises `OpError`."""
    if body.optimizer_params is not None:
        raise ops.OpError(unsupported_optimizer(body.optimizer_params.get("type")))
    if body.adam_params is None:
        raise ops.OpError("optim_step needs adam_params.")
    return body.adam_params.params()


def unsupported_optimizer(kind: object) -> str:
    """The sentence that refuses an optimizer other than AdamW."""
    why = ", because constants of its update are not published" if kind == "dimuon" else ""
    return f"The optimizer {str(kind)[:60]!r} is not supported{why}; use AdamW, the default."
