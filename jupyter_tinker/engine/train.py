"""A run, and the three things training does with it: forward, forward_backward, optim_step.

Either an operation is done or it raises and the run is as it was before. What is not finite is no
error: it is reported, and reaches neither gradients nor weights.
Knows nothing of files, messages or how a run came to be.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ..wire.ops import AdamParams, LoraSpec
from ..wire.tensors import Batch
from . import adamw, batch, losses, memory
from .adamw import AdamW
from .adapter import Adapter
from .base_model import BaseModel
from .batch import Example
from .evaluation import Evaluation, Result
from .fast.decoder import Decoder

_log = logging.getLogger("jupyter_tinker.engine")

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
    decoder = _decoder(run.base, examples)
    work = _Work(run, loss, config, examples, decoder, backward=not request.forward_only)
    if decoder is None:
        run.base.wrappers.activate(run.adapter)
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


@dataclass(frozen=True)
class _Work:
    """A checked batch, to be evaluated."""

    run: Run
    loss: losses.Loss
    config: losses.Config
    examples: Sequence[Example]
    decoder: Decoder | None  # in the place of transformers and PEFT
    backward: bool

    def results(self, microbatch_tokens: int) -> tuple[list[Result], str | None]:
        """Each datum's result, and why the gradient was dropped. Where the device has too little
        memory it is tried again in ever smaller microbatches, down to single sequences."""
        limit = microbatch_tokens
        groups = self._groups(limit)
        while True:
            try:
                return self._evaluate(groups)
            except (RuntimeError, MemoryError) as error:
                if not memory.ran_out(error) or max(map(len, groups)) == 1:
                    raise
            memory.release()
            tried = groups
            while groups == tried:
                limit //= 2
                groups = self._groups(limit)
            _log.warning("Out of memory; trying again with %d tokens a microbatch.", limit)

    def _groups(self, max_tokens: int) -> list[list[int]]:
        lengths = [example.length for example in self.examples]
        if self.decoder is not None:
            return batch.fill(lengths, max_tokens)
        cost = _GROUP_COST.get(self.run.base.device.type, _GROUP_COST["cuda"])
        return batch.group(lengths, max_tokens, cost)

    def _evaluate(self, groups: list[list[int]]) -> tuple[list[Result], str | None]:
        if not self.backward:
            return self._pass(groups, backward=False)[0], None
        with _all_or_nothing(self.run) as put_back:
            results, fault = self._pass(groups, backward=True)
            if fault is None and not math.isfinite(adamw.norm(self.run.adapter.gradients)):
                fault = (
                    "the gradient of this batch is not finite, so it was dropped; lower the "
                    "weights of its loss, or load an earlier checkpoint if the model itself has "
                    "diverged"
                )
            if fault is not None:
                put_back()
        return results, fault

    def _pass(self, groups: list[list[int]], *, backward: bool) -> tuple[list[Result], str | None]:
        results: dict[int, Result] = {}
        fault: str | None = None
        for members in groups:
            packed = batch.assemble(self.examples, members, self.run.base.device)
            evaluation = Evaluation(
                self.run.adapter, self.loss, self.config, self.examples, packed, self.decoder
            )
            # Once a gradient is lost, the others need not be computed.
            done, found = evaluation.run(backward=backward and fault is None)
            fault = fault or found
            results.update(zip(members, done, strict=True))
        return [results[i] for i in range(len(self.examples))], fault


def _decoder(base: BaseModel, examples: Sequence[Example]) -> Decoder | None:
    """What computes these sequences without padding; None: transformers and PEFT do."""
    decoder = base.decoder
    if decoder is None or not decoder.serves([example.length for example in examples]):
        return None
    return decoder


@contextmanager
def _all_or_nothing(run: Run) -> Iterator[Callable[[], None]]:
    """Puts the gradients back if the block fails, be it half-way through its microbatches, or if it
    calls what it is given."""
    gradients = run.adapter.gradients
    before = gradients.clone() if run.has_gradients else None

    def put_back() -> None:
        if before is None:
            run.zero_grad()
        else:
            gradients.copy_(before)

    run.has_gradients = True
    try:
        yield put_back
    except BaseException:
        put_back()
        raise


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
