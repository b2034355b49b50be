"""The three things training does with a run: forward, forward_backward, optim_step.

Either an operation is done or it raises and the run is as it was before. What is not finite is no
error: it is reported, and reaches neither gradients nor weights.
Knows nothing of files, messages or how a run came to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..wire.ops import AdamParams
from ..wire.tensors import Batch
from . import adamw, batch, losses
from .batch import Example
from .evaluation import Result
from .passes import Work
from .run import Run


@dataclass(frozen=True)
class ForwardResult:
    """Each datum's arrays, in the order of the data, and the sums over them."""

    outputs: list[dict[str, np.ndarray]]
    loss_sum: float
    weight_sum: float
    num_tokens: int
    loss_metrics: dict[str, float]  # the loss's own
    not_finite: str | None  # why the gradients were left as they were

    @property
    def metrics(self) -> dict[str, float]:
        """The SDK wants one colon in a key, and after it how chunks of a batch are put together."""
        return {
            "loss:sum": self.loss_sum,
            "weight:sum": self.weight_sum,
            "tokens:sum": float(self.num_tokens),
            "datums:sum": float(len(self.outputs)),
            **self.loss_metrics,
        }


@dataclass(frozen=True)
class StepResult:
    grad_norm: float
    update_norm: float | None  # None: skipped
    skipped: str | None = None  # why weights and optimizer were left as they were


def forward_backward(
    run: Run, loss: losses.Loss, request: Batch, microbatch_tokens: int
) -> ForwardResult:
    """The loss of a batch and, unless it is `forward_only`, its gradient on top of the run's."""
    config = losses.settings(loss, request.loss_fn_config)
    examples = batch.check(request.data, loss, run.base.limits)
    work = Work(run, loss, config, examples, backward=not request.forward_only)
    results, not_finite = work.results(microbatch_tokens)
    return ForwardResult(
        outputs=[result.output for result in results],
        loss_sum=_total(result.loss for result in results),
        weight_sum=_total(_weight(loss, example) for example in examples),
        num_tokens=sum(example.length for example in examples),
        loss_metrics=_loss_metrics(loss, config, examples, results),
        not_finite=not_finite,
    )


def optim_step(run: Run, params: AdamParams) -> StepResult:
    """One step of AdamW with the gradients accumulated since the last; clears them."""
    adamw.check(params)
    adapter = run.adapter
    norm = adamw.norm(adapter.gradients)
    if not math.isfinite(norm):
        run.zero_grad()
        return StepResult(
            norm,
            None,
            f"the gradient norm is {norm}: these gradients were dropped, weights and optimizer are "
            f"as they were; scale the loss down or check its inputs",
        )
    scale = 1.0
    if params.grad_clip_norm > 0:  # as torch.nn.utils.clip_grad_norm_ does
        scale = min(1.0, params.grad_clip_norm / (norm + 1e-6))
    update_norm = run.optimizer.step(adapter.weights, adapter.gradients, params, scale)
    run.zero_grad()
    if not math.isfinite(update_norm):
        return StepResult(
            norm,
            None,
            f"with learning_rate {params.learning_rate}, eps {params.eps} and weight_decay "
            f"{params.weight_decay} the step would make the weights infinite: its gradients were "
            f"dropped, weights and optimizer are as they were; lower them",
        )
    run.step += 1
    return StepResult(norm, update_norm)


def _total(values: Iterable[float]) -> float:
    """The exact sum, and what IEEE arithmetic makes of infinite ones."""
    numbers = list(values)
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # beyond all numbers, or both infinities
        return sum(numbers)


def _weight(loss: losses.Loss, example: Example) -> float:
    """What a datum's loss is a mean over: its weights, or the tokens that have a gradient."""
    if loss.weight is not None:
        return float(example.inputs[loss.weight].sum(dtype=np.float64))
    if loss.active is None:
        return float(example.length)
    inputs = {name: torch.from_numpy(array) for name, array in example.inputs.items()}
    return float(loss.active(inputs).any(dim=1).sum())


def _loss_metrics(
    loss: losses.Loss,
    config: losses.Config,
    examples: Sequence[Example],
    results: Sequence[Result],
) -> dict[str, float]:
    metrics = {f"{key}:mean": float(value) for key, value in config.items()}
    if loss.report is not None:
        names = examples[0].inputs
        inputs = {name: np.concatenate([e.inputs[name][:, 0] for e in examples]) for name in names}
        logprobs = np.concatenate([result.output["logprobs"] for result in results])
        with np.errstate(over="ignore", invalid="ignore"):
            metrics.update(loss.report(logprobs, inputs, config))
    for key in results[0].metrics:
        total = _total(result.metrics[key] for result in results)
        metrics[key] = total / len(results) if key.endswith(":mean") else total
    return metrics
