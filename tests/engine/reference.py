"""What the engine is held against, and the short ways of the tests to talk to it.

`PlainLoop` is the loop a person would write with transformers, PEFT and torch, and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops
from jupyter_tinker.wire import tinker_pb2 as pb

VOCAB = 256


@dataclass(frozen=True)
class Sample:
    """A datum of a test."""

    tokens: list[int]
    targets: np.ndarray  # (N,) or (N, K)
    weights: np.ndarray | None


@dataclass(frozen=True)
class Answer:
    """What a `ForwardBackward` gave."""

    stats: ops.ForwardBackwardStats
    logprobs: list[np.ndarray]
    elementwise: list[np.ndarray]
    metrics: dict[str, float]


def samples(seed: int, lengths: Sequence[int] = (9, 17, 5, 12), k: int = 0) -> list[Sample]:
    """Random sequences with random weights, some zero and some negative; `k` targets a token."""
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        shape = (length, k) if k else (length,)
        weights = rng.normal(size=shape) * (rng.random(shape) < 0.7)
        made.append(
            Sample(
                tokens=rng.integers(0, VOCAB, length).tolist(),
                targets=rng.integers(0, VOCAB, shape),
                weights=weights.astype(np.float32),
            )
        )
    return made


def tensor(array: np.ndarray) -> pb.Tensor:
    integer = np.issubdtype(array.dtype, np.integer)
    return pb.Tensor(
        dense=array.astype("<i8" if integer else "<f4").tobytes(),
        dtype=pb.DTYPE_INT64 if integer else pb.DTYPE_FLOAT32,
        shape=array.shape,
    )


def text(tokens: Sequence[int]) -> pb.Chunk:
    return pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=np.array(tokens, "<i4").tobytes()))


def datum(sample: Sample) -> pb.Datum:
    inputs = {"target_tokens": tensor(sample.targets)}
    if sample.weights is not None:
        inputs["weights"] = tensor(sample.weights)
    half = len(sample.tokens) // 2
    chunks = [text(part) for part in (sample.tokens[:half], sample.tokens[half:]) if part]
    return pb.Datum(model_input=chunks, loss_fn_inputs=inputs)


def request(data: Sequence[Sample | pb.Datum], **fields: Any) -> bytes:
    """The body of a `ForwardBackward`."""
    messages = [datum(d) if isinstance(d, Sample) else d for d in data]
    values = {"model_id": "m", "seq_id": 1, "loss_fn": "cross_entropy", **fields}
    return pb.ForwardBackwardRequest(data=messages, **values).SerializeToString()


class Client:
    """One run of an engine."""

    def __init__(self, engine: Engine, base: Path, run: str = "run") -> None:
        self.engine = engine
        self.base = str(base)
        self.run = run

    def create(self, rank: int = 4, seed: int = 7, **lora: Any) -> ops.RunInfo:
        spec = ops.LoraSpec(rank=rank, seed=seed, **lora)
        op = ops.CreateRun(run=self.run, base_model="tiny", base_path=self.base, lora=spec)
        return ops.run_info(self.engine.handle(op)[0])

    def load(self, folder: Path, *, optimizer: bool = False) -> ops.RunInfo:
        op = ops.LoadRun(
            run=self.run,
            base_model="tiny",
            base_path=self.base,
            checkpoint=str(folder),
            optimizer=optimizer,
        )
        return ops.run_info(self.engine.handle(op)[0])

    def load_weights(self, folder: Path, *, optimizer: bool = False) -> ops.RunInfo:
        op = ops.LoadWeights(run=self.run, checkpoint=str(folder), optimizer=optimizer)
        return ops.run_info(self.engine.handle(op)[0])

    def forward(self, data: Sequence[Sample | pb.Datum]) -> Answer:
        return self.backward(data, forward_only=True)

    def backward(self, data: Sequence[Sample | pb.Datum], **fields: Any) -> Answer:
        return self.send(request(data, **fields))

    def send(self, body: bytes, custom_loss: str | None = None) -> Answer:
        op = ops.ForwardBackward(run=self.run, body=body, custom_loss=custom_loss)
        stats, buffers = self.engine.handle(op)
        output = pb.ForwardBackwardOutput.FromString(buffers[0])
        return Answer(
            stats=ops.ForwardBackwardStats(**stats),
            logprobs=_field(output, "logprobs"),
            elementwise=_field(output, "elementwise_loss"),
            metrics=dict(output.metrics),
        )

    def step(self, adam: ops.AdamParams | None = None, **changes: Any) -> ops.OptimStepStats:
        params = replace(adam or ops.AdamParams(), **changes)
        return ops.OptimStepStats(**self.engine.handle(ops.OptimStep(run=self.run, adam=params))[0])

    def save(self, folder: Path, kind: ops.CheckpointKind = "weights") -> ops.SaveInfo:
        op = ops.SaveCheckpoint(run=self.run, kind=kind, folder=str(folder), base_model_name="tiny")
        return ops.SaveInfo(**self.engine.handle(op)[0])

    def unload(self) -> None:
        self.engine.handle(ops.UnloadRun(run=self.run))

    def zero_grad(self) -> None:
        self.engine.handle(ops.ZeroGrad(run=self.run))

    @property
    def weights(self) -> torch.Tensor:
        return self.engine.runs[self.run].adapter.weights

    @property
    def gradients(self) -> torch.Tensor:
        return self.engine.runs[self.run].adapter.gradients


def _field(output: pb.ForwardBackwardOutput, name: str) -> list[np.ndarray]:
    arrays = []
    for record in output.loss_fn_outputs:
        if name not in record.fields:
            continue
        batched = record.fields[name]
        offsets = np.frombuffer(batched.offsets, "<i8")
        for start, end in pairwise(offsets):
            array = np.frombuffer(batched.data[start:end], "<f4")
            arrays.append(array.reshape(-1, *batched.trailing_shape))
    return arrays


def load_peft(base: Path, adapter: Path, **kwargs: Any) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT's advice about merging tied output layers, which cannot be turned off.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        # PEFT reads an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter, **kwargs
        )


class PlainLoop:
    """transformers + PEFT, one padded batch with an attention mask, torch's AdamW."""

    def __init__(self, base: Path, adapter: Path) -> None:
        self.model = load_peft(base, adapter, is_trainable=True).eval()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters)

    def logprobs(self, data: Sequence[Sample]) -> list[torch.Tensor]:
        """Of every target, with its graph, in the shape of the targets."""
        longest = max(len(sample.tokens) for sample in data)
        tokens = torch.zeros(len(data), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, sample in enumerate(data):
            tokens[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
            mask[row, : len(sample.tokens)] = 1
        logits = self.model(input_ids=tokens, attention_mask=mask).logits
        logprobs = torch.log_softmax(logits.float(), -1)
        picked = []
        for row, sample in enumerate(data):
            targets = torch.from_numpy(sample.targets).reshape(len(sample.tokens), -1)
            own = logprobs[row, : len(targets)].gather(1, targets)
            picked.append(own.reshape(sample.targets.shape))
        return picked

    def backward(self, data: Sequence[Sample]) -> tuple[list[np.ndarray], float]:
        loss = torch.zeros(())
        own = self.logprobs(data)
        for sample, picked in zip(data, own, strict=True):
            weights = np.ones(picked.shape) if sample.weights is None else sample.weights
            loss = loss - (picked * torch.from_numpy(weights).float()).sum()
        loss.backward()
        return [picked.detach().numpy() for picked in own], float(loss.detach())

    @property
    def gradients(self) -> dict[str, torch.Tensor]:
        """By the names that the engine gives its parameters."""
        return {
            name.removeprefix("base_model.model.").replace(".default", ""): p.grad
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }

    def step(self, adam: ops.AdamParams) -> float:
        group = self.optimizer.param_groups[0]
        group.update(
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
        )
        limit = adam.grad_clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, limit))
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm
