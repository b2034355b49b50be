"""The engine: base models, the runs on them, and an answer to every operation of `wire.ops`.

`handle` either does what an operation asks or raises `OpError`, with the run as it was before;
`perform` does not wait for what is done beside other operations.
Knows nothing of kernels, messages, futures or HTTP; a test or a script can use it as it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from ..wire import ops, sampling, tensors
from ..wire.ops import Op, OpError
from . import (
    base_model,
    checkpoint,
    custom_loss,
    encryption,
    memory,
    passes,
    placement,
    snapshot,
    train,
)
from .adamw import AdamW
from .adapter import Adapter
from .base_model import BaseModel
from .fast import structure
from .fast.recorder import Recorder
from .progress import Report, unheard
from .run import Run
from .sample import Sampling
from .snapshot_writer import SnapshotWriter

Buffers = list[bytes]
Answer = tuple[dict[str, Any], Buffers]  # an operation's result as a dictionary, and its buffers
_AnyOp = TypeVar("_AnyOp", bound=Op)


class Engine:
    """Answers operations; `runs` and `bases` are there to be looked at."""

    def __init__(self, options: ops.EngineOptions | None = None) -> None:
        self.runs: dict[str, Run] = {}
        self.bases: dict[str, BaseModel] = {}  # by the path of their folder
        self.options = options or ops.EngineOptions()
        self.placement = placement.choose(self.options, placement.Machine.detect())
        self.sampling = Sampling()
        self.snapshots = SnapshotWriter()
        self.report: Report = unheard  # is told how far a long operation is

    def handle(self, op: Op) -> Answer:
        """Do an operation, to its end."""
        answer = self.perform(op)
        return answer.result() if isinstance(answer, Future) else answer

    def perform(self, op: Op) -> Answer | Future[Answer]:
        """Do an operation; a future stands for what is still written while others are done."""
        handler = _HANDLERS.get(type(op))
        if handler is None:
            raise OpError(f"this engine does not do {type(op).__name__}", "server")
        try:
            result, buffers = handler(self, op)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            reason = memory.reason(error)
        else:
            if isinstance(result, Future):
                return result
            return (asdict(result) if result is not None else {}), buffers
        memory.release()
        raise OpError(
            f"{self.placement.device} ran out of memory in {op.name} ({reason}); send shorter "
            f"sequences, lower microbatch_tokens, or unload other runs",
            "server",
        )

    def start(self, op: ops.Start) -> tuple[ops.EngineStatus, Buffers]:
        if self.bases and op.options != self.options:
            raise OpError(
                "an engine that has loaded models keeps its options; restart it", "server"
            )
        if op.options.microbatch_tokens < 0:
            raise OpError("microbatch_tokens must be at least 1, or 0 for what suits the device")
        self.placement = placement.choose(op.options, placement.Machine.detect())
        self.options = op.options
        # Also where the number stays, and before anything is computed: from the first call on MKL
        # takes no fewer by itself, and the first batch of two streams would be that call.
        torch.set_num_threads(placement.num_threads(op.options) or torch.get_num_threads())
        # Parts of a GPU's sums would be rounded to bfloat16 before they are added up.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self.sampling.cache_bytes = op.options.sampling_cache_mb << 20
        self.sampling.pack = not op.options.low_memory
        self.snapshots = SnapshotWriter(thrifty=op.options.low_memory)
        return self.status(ops.Status())

    def status(self, op: ops.Status) -> tuple[ops.EngineStatus, Buffers]:
        return ops.EngineStatus(
            device=self.placement.device,
            dtype=self.placement.dtype,
            attention=self.placement.attention,
            reason=self.placement.reason,
            torch_version=torch.__version__,
            memory_bytes=memory.used(self.placement.torch_device),
            base_models=[base.name for base in self.bases.values()],
            runs=list(self.runs),
            memory_total_bytes=memory.total(self.placement.torch_device),
        ), []

    def create_run(self, op: ops.CreateRun) -> tuple[ops.RunInfo, Buffers]:
        self._check_new(op.run)
        base = self._base(op.base_model, op.base_path)
        return self._info(self._add(op.run, base, op.lora)), []

    def load_run(self, op: ops.LoadRun) -> tuple[ops.RunInfo, Buffers]:
        self._check_new(op.run)
        base = self._base(op.base_model, op.base_path)
        saved = checkpoint.read(Path(op.checkpoint), base, optimizer=op.optimizer)
        run = self._add(op.run, base, saved.lora, lambda run: checkpoint.restore(run, saved))
        return self._info(run), []

    def load_weights(self, op: ops.LoadWeights) -> tuple[ops.RunInfo, Buffers]:
        run = self._run(op.run)
        saved = checkpoint.read(Path(op.checkpoint), run.base, optimizer=op.optimizer)
        checkpoint.check_shape(saved, run)
        checkpoint.restore(run, saved)
        return self._info(run), []

    def forward_backward(self, op: ops.ForwardBackward) -> tuple[ops.ForwardBackwardStats, Buffers]:
        started = time.perf_counter()
        run = self._run(op.run)
        request = tensors.decode_request(op.body)
        loss = custom_loss.find(request.loss_fn, op.custom_loss)
        most = self.options.microbatch_tokens or passes.suitable_tokens(run.base)
        result = train.forward_backward(run, loss, request, most)
        body = tensors.encode_output(result.outputs, result.metrics)
        return ops.ForwardBackwardStats(
            loss_sum=_finite(result.loss_sum),
            weight_sum=result.weight_sum,
            num_tokens=result.num_tokens,
            num_datums=len(result.outputs),
            seconds=time.perf_counter() - started,
            not_finite=result.not_finite,
        ), [body]

    def check_custom_loss(self, op: ops.CheckCustomLoss) -> tuple[None, Buffers]:
        custom_loss.compile(op.definition)
        return None, []

    def optim_step(self, op: ops.OptimStep) -> tuple[ops.OptimStepStats, Buffers]:
        started = time.perf_counter()
        run = self._run(op.run)
        result = train.optim_step(run, op.adam)
        return ops.OptimStepStats(
            step=run.step,
            grad_norm=_finite(result.grad_norm),
            update_norm=result.update_norm,
            learning_rate=op.adam.learning_rate,
            seconds=time.perf_counter() - started,
            memory_bytes=memory.used(self.placement.torch_device),
            skipped=result.skipped,
        ), []

    def zero_grad(self, op: ops.ZeroGrad) -> tuple[None, Buffers]:
        self._run(op.run).zero_grad()
        return None, []

    def save_checkpoint(self, op: ops.SaveCheckpoint) -> tuple[ops.SaveInfo, Buffers]:
        run = self._run(op.run)
        recipients = None if op.recipients is None else encryption.recipients(op.recipients)
        return checkpoint.save(run, op.kind, Path(op.folder), op.base_model_name, recipients), []

    def snapshot_run(self, op: ops.SnapshotRun) -> tuple[Future[Answer], Buffers]:
        return self.snapshots.take(self._run(op.run), Path(op.file)), []

    def restore_run(self, op: ops.RestoreRun) -> tuple[ops.RunInfo, Buffers]:
        file = Path(op.file)
        snapshot.verify(file, op.sha256)
        base = self._base(op.base_model, op.base_path)
        state = snapshot.read(file, base)
        run = self.runs.get(op.run)
        if run is not None and run.base is base and run.lora == state.lora:
            snapshot.fill(run, state)
        else:
            run = self._add(op.run, base, state.lora, lambda run: snapshot.fill(run, state))
        return self._info(run), []

    def unload_run(self, op: ops.UnloadRun) -> tuple[None, Buffers]:
        run = self.runs.pop(op.run, None)
        if run is not None:
            base = run.base
            base.wrappers.remove(run.adapter)
            if base.recorder is not None and all(r.base is not base for r in self.runs.values()):
                base.recorder.forget()
            del run
            memory.give_back()
        return None, []

    def load_sampler(self, op: sampling.LoadSampler) -> tuple[None, Buffers]:
        base = self._base(op.base_model, op.base_path)
        memory.give_back()  # what passes of training have left would stay beside what it needs
        if op.checkpoint is None:
            self.sampling.load(op.sampler, base, None)
            return None, []
        saved = checkpoint.read(Path(op.checkpoint), base, optimizer=False)
        views = {key: tensor.to(base.device) for key, tensor in saved.weights.items()}
        self.sampling.load(op.sampler, base, views, saved.lora.scale)
        return None, []

    def snapshot_sampler(self, op: sampling.SnapshotSampler) -> tuple[None, Buffers]:
        run = self._run(op.run)
        memory.give_back()
        self.sampling.load(op.sampler, run.base, run.adapter.views, run.lora.scale)
        return None, []

    def unload_sampler(self, op: sampling.UnloadSampler) -> tuple[None, Buffers]:
        self.sampling.unload(op.sampler)
        memory.give_back()
        return None, []

    def sample(self, op: sampling.Sample) -> tuple[None, Buffers]:
        self.sampling.add(op)
        return None, []

    def cancel_sample(self, op: sampling.CancelSample) -> tuple[None, Buffers]:
        self.sampling.cancel(op.request)
        return None, []

    def decode(self, op: sampling.Decode) -> tuple[sampling.Decoded, Buffers]:
        return self.sampling.work(op.seconds)

    def _add(
        self,
        name: str,
        base: BaseModel,
        lora: ops.LoraSpec,
        fill: Callable[[Run], None] = lambda run: None,
    ) -> Run:
        """A new run, which takes its name's place once it is filled."""
        memory.give_back()  # what passes of other runs have left would stay beside what it needs
        adapter = Adapter(base, lora)
        run = Run(name, adapter, AdamW(adapter.weights))
        fill(run)
        replaced = self.runs.get(name)
        self.runs[name] = run
        if replaced is not None:
            replaced.base.wrappers.remove(replaced.adapter)
        return run

    def _check_new(self, name: str) -> None:
        if name in self.runs:
            raise OpError(f"the engine already has a run {name!r}; unload it first", "server")

    def _run(self, name: str) -> Run:
        try:
            return self.runs[name]
        except KeyError:
            raise OpError(f"the engine has no run {name!r}; create or load it first") from None

    def _base(self, name: str, path: str) -> BaseModel:
        if path not in self.bases:
            base = base_model.load(name, Path(path), self.options, self.placement, self.report)
            base.decoder = structure.find(base)
            if base.decoder is not None:
                base.recorder = Recorder.of(base.decoder, base.device)
            self.bases[path] = base
        return self.bases[path]

    def _info(self, run: Run) -> ops.RunInfo:
        return ops.RunInfo(run.lora, run.adapter.weights.numel(), run.step)


def _finite(number: float) -> float | None:
    """JSON knows no others."""
    return number if math.isfinite(number) else None


def _answers(
    kind: type[_AnyOp], handler: Callable[[Engine, _AnyOp], tuple[Any, Buffers]]
) -> tuple[type[Op], Callable[[Engine, Op], tuple[Any, Buffers]]]:
    """A table entry; the table sees to it that a handler gets its own kind of operation."""
    return kind, cast("Callable[[Engine, Op], tuple[Any, Buffers]]", handler)


_HANDLERS = dict(
    [
        _answers(ops.Start, Engine.start),
        _answers(ops.Status, Engine.status),
        _answers(ops.CreateRun, Engine.create_run),
        _answers(ops.LoadRun, Engine.load_run),
        _answers(ops.LoadWeights, Engine.load_weights),
        _answers(ops.ForwardBackward, Engine.forward_backward),
        _answers(ops.CheckCustomLoss, Engine.check_custom_loss),
        _answers(ops.OptimStep, Engine.optim_step),
        _answers(ops.ZeroGrad, Engine.zero_grad),
        _answers(ops.SaveCheckpoint, Engine.save_checkpoint),
        _answers(ops.SnapshotRun, Engine.snapshot_run),
        _answers(ops.RestoreRun, Engine.restore_run),
        _answers(ops.UnloadRun, Engine.unload_run),
        _answers(sampling.LoadSampler, Engine.load_sampler),
        _answers(sampling.SnapshotSampler, Engine.snapshot_sampler),
        _answers(sampling.UnloadSampler, Engine.unload_sampler),
        _answers(sampling.Sample, Engine.sample),
        _answers(sampling.CancelSample, Engine.cancel_sample),
        _answers(sampling.Decode, Engine.decode),
    ]
)
