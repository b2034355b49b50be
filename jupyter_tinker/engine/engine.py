"""The engine: base models, the runs on them, and an answer to every operation of `wire.ops`.

`handle` either does what an operation asks or raises `OpError`, with the run as it was before.
Knows nothing of kernels, messages, futures or HTTP; a test or a script can use it as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import torch

from ..wire import ops, sampling, tensors
from ..wire.ops import Op, OpError
from . import base_model, checkpoint, custom_loss, encryption, losses, placement, train
from .adamw import AdamW
from .adapter import Adapter
from .base_model import BaseModel
from .inference import Weights
from .sample import Sampling, snapshot
from .train import Run

Buffers = list[bytes]
# A CPU is no faster with more, and a token of SmolLM2 takes 1.7 MB of activations.
_MICROBATCH_TOKENS = {"cpu": 1024, "cuda": 4096}
_AnyOp = TypeVar("_AnyOp", bound=Op)


class Engine:
    """Answers operations; `runs` and `bases` are there to be looked at."""

    def __init__(self, options: ops.EngineOptions | None = None) -> None:
        self.runs: dict[str, Run] = {}
        self.bases: dict[str, BaseModel] = {}  # by the path of their folder
        self.options = options or ops.EngineOptions()
        self.placement = placement.choose(self.options, placement.Machine.detect())
        self.sampling = Sampling()

    def handle(self, op: Op) -> tuple[dict[str, Any], Buffers]:
        """The result of an operation, as a dictionary, and its buffers."""
        handler = _HANDLERS.get(type(op))
        if handler is None:
            raise OpError(f"this engine does not do {type(op).__name__}", "server")
        try:
            result, buffers = handler(self, op)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0][:300]
        except MemoryError:
            reason = "Python could allocate no more"
        else:
            return (asdict(result) if result is not None else {}), buffers
        # Outside of the handlers: there the traceback would still hold the tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
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
        if op.options.num_threads > 0:
            torch.set_num_threads(op.options.num_threads)
        self.sampling.cache_bytes = op.options.sampling_cache_mb << 20
        return self.status(ops.Status())

    def status(self, op: ops.Status) -> tuple[ops.EngineStatus, Buffers]:
        return ops.EngineStatus(
            device=self.placement.device,
            dtype=self.placement.dtype,
            attention=self.placement.attention,
            reason=self.placement.reason,
            torch_version=torch.__version__,
            memory_bytes=self._memory_bytes(),
            base_models=[base.name for base in self.bases.values()],
            runs=list(self.runs),
        ), []

    def create_run(self, op: ops.CreateRun) -> tuple[ops.RunInfo, Buffers]:
        self._check_new(op.run)
        base = self._base(op.base_model, op.base_path)
        return self._info(self._add(op.run, Adapter(base, op.lora))), []

    def load_run(self, op: ops.LoadRun) -> tuple[ops.RunInfo, Buffers]:
        self._check_new(op.run)
        base = self._base(op.base_model, op.base_path)
        saved = checkpoint.read(Path(op.checkpoint), base, optimizer=op.optimizer)
        run = self._add(op.run, Adapter(base, saved.lora))
        checkpoint.restore(run, saved)
        return self._info(run), []

    def load_weights(self, op: ops.LoadWeights) -> tuple[ops.RunInfo, Buffers]:
        run = self._run(op.run)
        saved = checkpoint.read(Path(op.checkpoint), run.base, optimizer=op.optimizer)
        if _shape(saved.lora) != _shape(run.lora):
            raise OpError(
                f"the checkpoint has {_shape(saved.lora)} and the run {_shape(run.lora)}; "
                f"load it as a new run instead"
            )
        checkpoint.restore(run, saved)
        return self._info(run), []

    def forward_backward(self, op: ops.ForwardBackward) -> tuple[ops.ForwardBackwardStats, Buffers]:
        started = time.perf_counter()
        run = self._run(op.run)
        request = tensors.decode_request(op.body)
        loss = _loss(request.loss_fn, op.custom_loss)
        result = train.forward_backward(run, loss, request, self._microbatch_tokens)
        body = tensors.encode_output(result.outputs, result.metrics)
        return ops.ForwardBackwardStats(
            loss_sum=result.loss_sum,
            weight_sum=result.weight_sum,
            num_tokens=result.num_tokens,
            num_datums=len(result.outputs),
            seconds=time.perf_counter() - started,
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
            grad_norm=result.grad_norm,
            update_norm=result.update_norm,
            learning_rate=op.adam.learning_rate,
            seconds=time.perf_counter() - started,
            memory_bytes=self._memory_bytes(),
        ), []

    def zero_grad(self, op: ops.ZeroGrad) -> tuple[None, Buffers]:
        self._run(op.run).zero_grad()
        return None, []

    def save_checkpoint(self, op: ops.SaveCheckpoint) -> tuple[ops.SaveInfo, Buffers]:
        run = self._run(op.run)
        recipients = None if op.recipients is None else encryption.recipients(op.recipients)
        return checkpoint.save(run, op.kind, Path(op.folder), op.base_model_name, recipients), []

    def unload_run(self, op: ops.UnloadRun) -> tuple[None, Buffers]:
        run = self.runs.pop(op.run, None)
        if run is not None:
            run.adapter.remove()
        return None, []

    def load_sampler(self, op: sampling.LoadSampler) -> tuple[None, Buffers]:
        base = self._base(op.base_model, op.base_path)
        weights = None
        if op.checkpoint is not None:
            saved = checkpoint.read(Path(op.checkpoint), base, optimizer=False)
            views = {key: tensor.to(base.device) for key, tensor in saved.weights.items()}
            weights = Weights(views, saved.lora.alpha / saved.lora.rank)
        self.sampling.load(op.sampler, base, weights)
        return None, []

    def snapshot_sampler(self, op: sampling.SnapshotSampler) -> tuple[None, Buffers]:
        run = self._run(op.run)
        self.sampling.load(op.sampler, run.base, snapshot(run.adapter))
        return None, []

    def unload_sampler(self, op: sampling.UnloadSampler) -> tuple[None, Buffers]:
        self.sampling.unload(op.sampler)
        return None, []

    def sample(self, op: sampling.Sample) -> tuple[None, Buffers]:
        self.sampling.add(op)
        return None, []

    def cancel_sample(self, op: sampling.CancelSample) -> tuple[None, Buffers]:
        self.sampling.cancel(op.request)
        return None, []

    def decode(self, op: sampling.Decode) -> tuple[sampling.Decoded, Buffers]:
        return self.sampling.work(op.seconds)

    def _add(self, name: str, adapter: Adapter) -> Run:
        self.runs[name] = Run(name, adapter, AdamW(adapter.weights))
        return self.runs[name]

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
            self.bases[path] = base_model.load(name, Path(path), self.options, self.placement)
        return self.bases[path]

    def _info(self, run: Run) -> ops.RunInfo:
        return ops.RunInfo(run.lora, run.adapter.weights.numel(), run.step)

    @property
    def _microbatch_tokens(self) -> int:
        device = self.placement.torch_device.type
        return self.options.microbatch_tokens or _MICROBATCH_TOKENS.get(
            device, _MICROBATCH_TOKENS["cuda"]
        )

    def _memory_bytes(self) -> int:
        device = self.placement.torch_device
        if device.type == "cuda":
            return torch.cuda.memory_allocated(device)
        if device.type == "mps":
            return torch.mps.current_allocated_memory()
        return int(psutil.Process().memory_info().rss)


def _loss(name: str, definition: str | None) -> losses.Loss:
    if name == losses.CUSTOM and definition is not None:
        return custom_loss.loss(definition)
    return losses.find(name)


def _shape(lora: ops.LoraSpec) -> str:
    parts = [part for part in ("attn", "mlp", "unembed") if getattr(lora, f"train_{part}")]
    return f"rank {lora.rank}, alpha {lora.alpha:g}, trained {'+'.join(parts)}"


def _is_out_of_memory(error: RuntimeError) -> bool:
    # On the CPU torch raises a plain RuntimeError.
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text


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
        _answers(ops.UnloadRun, Engine.unload_run),
        _answers(sampling.LoadSampler, Engine.load_sampler),
        _answers(sampling.SnapshotSampler, Engine.snapshot_sampler),
        _answers(sampling.UnloadSampler, Engine.unload_sampler),
        _answers(sampling.Sample, Engine.sample),
        _answers(sampling.CancelSample, Engine.cancel_sample),
        _answers(sampling.Decode, Engine.decode),
    ]
)
