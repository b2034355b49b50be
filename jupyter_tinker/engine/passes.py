"""A checked batch, taken through the model in microbatches: which ones, and all or nothing.

On the CPU two streams of microbatches are computed at once where they are of like size. Knows
nothing of optimizers, or of what becomes of the results.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

from . import adamw, batch, beside, losses, memory
from .adapter import Views
from .base_model import BaseModel
from .batch import Example
from .evaluation import Evaluation, Result
from .fast.decoder import Decoder
from .run import Run

_log = logging.getLogger("jupyter_tinker.engine")

# What a pass of its own costs, in tokens of padding: a GPU waits for the launches of every layer.
_GROUP_COST = {"cpu": 32, "cuda": 1024}
# Each of two streams reads all weights, which of fewer tokens takes longer than computing.
_LEAST_STREAM_TOKENS = 64

# A CPU is hardly faster with more. A token of SmolLM2 keeps 0.7 MB of activations in float32.
_CPU_MICROBATCH_TOKENS = {"float32": 512, "bfloat16": 1024}
_MICROBATCH_TOKENS = 4096  # elsewhere
_CUDA_MICROBATCHES = range(2048, 16385)  # without padding, by the memory that there is

_Results = dict[int, Result]  # by the datum's place in the batch
_Groups = list[list[int]]  # the members of each microbatch


@dataclass(frozen=True)
class _Plan:
    """In which microbatches a batch is computed."""

    streams: tuple[_Groups, _Groups]  # at once, or none
    alone: _Groups  # then, one after the other

    @property
    def least(self) -> bool:
        """Whether no other takes less memory."""
        return not any(self.streams) and max(map(len, self.alone)) == 1


def suitable_tokens(base: BaseModel) -> int:
    """Of a microbatch, if nothing else is asked for. On a GPU that depends on all the memory it
    has, and not on what is free: how a batch is cut decides the last bits of its sums."""
    device = base.device
    if device.type == "cuda" and base.decoder is not None:
        bounds = _CUDA_MICROBATCHES
        return min(max(base.decoder.most_kept(device), bounds[0]), bounds[-1])
    if device.type == "cpu":
        return _CPU_MICROBATCH_TOKENS[base.placement.dtype]
    return _MICROBATCH_TOKENS


@dataclass(frozen=True)
class Work:
    """A checked batch, to be evaluated."""

    run: Run
    loss: losses.Loss
    config: losses.Config
    examples: Sequence[Example]
    backward: bool

    def results(self, microbatch_tokens: int) -> tuple[list[Result], str | None]:
        """Each datum's result, and why the gradient was dropped. Where the device has too little
        memory it is tried again in ever smaller microbatches, down to single sequences."""
        if self._decoder is None:
            self.run.base.wrappers.activate(self.run.adapter)
        limit = microbatch_tokens
        plan = self._plan(limit)
        while True:
            try:
                results, fault = self._evaluate(plan)
                return [results[i] for i in range(len(self.examples))], fault
            except (RuntimeError, MemoryError) as error:
                if not memory.ran_out(error) or plan.least:
                    raise
            if self.run.base.recorder is not None:
                self.run.base.recorder.forget()
            memory.release()
            tried = plan
            while plan == tried:
                limit //= 2
                plan = self._plan(limit)
            _log.warning("Out of memory; trying again with %d tokens a microbatch.", limit)

    @cached_property
    def _decoder(self) -> Decoder | None:
        """What computes these sequences without padding; None: transformers and PEFT do."""
        decoder = self.run.base.decoder
        return decoder if decoder is not None and decoder.serves(self._lengths) else None

    @cached_property
    def _lengths(self) -> list[int]:
        return [example.length for example in self.examples]

    def _plan(self, max_tokens: int) -> _Plan:
        """With `max_tokens` at once, save one long sequence alone."""
        everyone = list(range(len(self.examples)))
        if self._decoder is None:
            cost = _GROUP_COST.get(self.run.base.device.type, _GROUP_COST["cuda"])
            return _Plan(([], []), batch.group(self._lengths, max_tokens, cost))
        # Custom losses are evaluated one at a time, for they may take much memory.
        if self.run.base.device.type != "cpu" or not beside.possible() or self.loss.custom:
            return _Plan(([], []), self._filled(everyone, max_tokens))
        half = max_tokens // 2
        left, right, rest = batch.halve(self._lengths, half, _LEAST_STREAM_TOKENS)
        streams = self._filled(left, half), self._filled(right, half)
        return _Plan(streams, self._filled(rest, max_tokens))

    def _filled(self, members: list[int], max_tokens: int) -> _Groups:
        if not members:
            return []
        groups = batch.fill([self._lengths[i] for i in members], max_tokens)
        return [[members[i] for i in group] for group in groups]

    def _evaluate(self, plan: _Plan) -> tuple[_Results, str | None]:
        if not self.backward:
            return self._passes(plan)[0], None
        with _all_or_nothing(self.run) as put_back:
            results, fault = self._passes(plan)
            if fault is None and not math.isfinite(adamw.norm(self.run.adapter.gradients)):
                fault = (
                    "the gradient of this batch is not finite, so it was dropped; lower the "
                    "weights of its loss, or load an earlier checkpoint if the model itself has "
                    "diverged"
                )
            if fault is not None:
                put_back()
        return results, fault

    def _passes(self, plan: _Plan) -> tuple[_Results, str | None]:
        adapter = self.run.adapter
        results: _Results = {}
        fault = None
        if any(plan.streams):
            # Sums in the order of their coming would depend on what else the machine does.
            more, views = adapter.laid_out() if self.backward else (None, adapter.gradient_views)
            (results, fault), (others, found) = beside.both(
                partial(self._stream, plan.streams[0], adapter.gradient_views),
                partial(self._stream, plan.streams[1], views),
            )
            results.update(others)
            fault = fault or found
            if more is not None:
                adapter.gradients.add_(more)
        rest, found = self._stream(plan.alone, adapter.gradient_views, fault)
        return results | rest, found

    def _stream(
        self, groups: _Groups, gradients: Views, fault: str | None = None
    ) -> tuple[_Results, str | None]:
        """Microbatches one after the other; their gradients are added to `gradients`. With the
        `fault` for which the gradient is lost, if it is: then it need not be computed."""
        results: _Results = {}
        for members in groups:
            packed = batch.assemble(self.examples, members, self.run.base.device)
            evaluation = Evaluation(
                self.run.adapter,
                gradients,
                self.loss,
                self.config,
                self.examples,
                packed,
                self._decoder,
            )
            done, found = evaluation.run(backward=self.backward and fault is None)
            fault = fault or found
            results.update(zip(members, done, strict=True))
        return results, fault


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
