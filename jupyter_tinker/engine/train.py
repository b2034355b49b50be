"""A run, and the three things training does with it: forward, forward_backward, optim_step.

Either an operation is done or it raises and the run is as it was before.
Knows nothing of files, messages or how a run came to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ..wire.ops import AdamParams, LoraSpec, OpError
from ..wire.tensors import Batch
from . import adamw, batch, losses
from .adamw import AdamW
from .adapter import Adapter
from .base_model import BaseModel
from .batch import Example
from .evaluation import Evaluation, Result

# What a pass of its own costs, in tokens of padding: a GPU waits for the launches of every layer.
_GROUP_COST = {"cpu": 32, "cuda": 1024}


@dataclass
class Run:
    """An adapter in training: its weights, gradients and optimizer."""

    name: str
    adapter: Adapter
    optimizer: AdamW
    step: int = 0  # of the optimizer
    has_gradients: bool = False

    @property
    def base(self) -> BaseModel:
        return self.adapter.base

    @property
    def lora(self) -> LoraSpec:
        return self.adapter.spec

    def zero_grad(self) -> None:
        if self.has_gradients:
            self.adapter.gradients.zero_()
            self.has_gradients = False


@dataclass(frozen=True)
class ForwardResult:
    """Each datum's arrays, in the order of the data, and the sums over them."""

    outputs: list[dict[str, np.ndarray]]
    loss_sum: float
    weight_sum: float
    num_tokens: int
    loss_metrics: dict[str, float]  # the loss's own

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
    update_norm: float


def forward_backward(
    run: Run, loss: losses.Loss, request: Batch, microbatch_tokens: int
) -> ForwardResult:
    """The loss of a batch and, unless it is `forward_only`, its gradient on top of the run's."""
    config = losses.settings(loss, request.loss_fn_config)
    examples = batch.check(request.data, loss, run.base.limits)
    group_cost = _GROUP_COST.get(run.base.device.type, _GROUP_COST["cuda"])
    groups = batch.group([e.length for e in examples], microbatch_tokens, group_cost)
    run.base.activate(run.adapter.name)
    results: dict[int, Result] = {}
    with _all_or_nothing(run, backward=not request.forward_only):
        for members in groups:
            packed = batch.assemble(examples, members, run.base.device)
            evaluation = Evaluation(run.adapter, loss, config, examples, packed)
            done = evaluation.run(backward=not request.forward_only)
            results.update(zip(members, done, strict=True))
    ordered = [results[i] for i in range(len(examples))]
    return ForwardResult(
        outputs=[result.output for result in ordered],
        loss_sum=math.fsum(result.loss for result in ordered),
        weight_sum=math.fsum(_weight(loss, example) for example in examples),
        num_tokens=sum(example.length for example in examples),
        loss_metrics=_loss_metrics(loss, config, examples, ordered),
    )


def optim_step(run: Run, params: AdamParams) -> StepResult:
    """One step of AdamW with the gradients accumulated since the last; clears them."""
    adamw.check(params)
    adapter = run.adapter
    norm = adamw.norm(adapter.gradients)
    if not math.isfinite(norm):
        run.zero_grad()
        raise OpError(
            f"the gradient norm is {norm}: these gradients were dropped, weights and optimizer are "
            f"as they were; scale the loss down or check its inputs"
        )
    gradients = adapter.gradients
    if params.grad_clip_norm > 0:
        # As torch.nn.utils.clip_grad_norm_ does, but the accumulated gradients stay whole until
        # the step has succeeded.
        gradients = gradients * min(1.0, params.grad_clip_norm / (norm + 1e-6))
    update_norm = run.optimizer.step(adapter.weights, gradients, params)
    run.zero_grad()
    run.step += 1
    return StepResult(grad_norm=norm, update_norm=update_norm)


@contextmanager
def _all_or_nothing(run: Run, *, backward: bool) -> Iterator[None]:
    """Puts the gradients back if the block fails, be it half-way through its microbatches."""
    if not backward:
        yield
        return
    gradients = run.adapter.gradients
    before = gradients.clone() if run.has_gradients else None
    run.has_gradients = True
    try:
        yield
        if not math.isfinite(adamw.norm(gradients)):
            raise OpError(
                "the gradient of this batch is not finite, so it was dropped; lower the weights of "
                "its loss, or load an earlier checkpoint if the model itself has diverged"
            )
    except BaseException:
        if before is None:
            run.zero_grad()
        else:
            gradients.copy_(before)
        raise


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
        metrics.update(loss.report(logprobs, inputs, config))
    for key in results[0].metrics:
        total = math.fsum(result.metrics[key] for result in results)
        metrics[key] = total / len(results) if key.endswith(":mean") else total
    return metrics
