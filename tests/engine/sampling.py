"""The short ways of the tests to sample, and the plain loop that sampling is held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire import tinker_pb2 as pb

from .reference import VOCAB, Client, load_peft, samples


class Asker:
    """The short way to ask one sampler of an engine."""

    def __init__(self, engine: Engine, base: Path, checkpoint: Path | None = None) -> None:
        self.engine = engine
        self.requests = 0
        self.name = f"sampler-{base.name}-{checkpoint and checkpoint.name}"
        folder = None if checkpoint is None else str(checkpoint)
        engine.handle(sampling.LoadSampler(self.name, "tiny", str(base), folder))

    def add(self, prompt: Sequence[int], /, *, stream: bool = False, **fields: Any) -> str:
        """Ask; returns the request's name. Parameters go where the protocol has them."""
        known = ("max_tokens", "seed", "stop", "temperature", "top_k", "top_p")
        params = {key: fields.pop(key) for key in known if key in fields}
        half = len(prompt) // 2
        chunks = [
            {"type": "encoded_text", "tokens": list(part)}
            for part in (prompt[:half], prompt[half:])
            if part
        ]
        body = {
            "sampling_session_id": self.name,
            "seq_id": self.requests,
            "prompt": {"chunks": chunks},
            "sampling_params": params,
            **fields,
        }
        self.requests += 1
        name = f"request-{self.requests}"
        op = sampling.Sample(name, self.name, stream, json.dumps(body).encode())
        self.engine.handle(op)
        return name

    def ask(self, prompt: Sequence[int], /, **fields: Any) -> pb.SampleResponse:
        name = self.add(prompt, **fields)
        return drain(self.engine)[name]


def drain(engine: Engine) -> dict[str, pb.SampleResponse]:
    """All answers, once there is nothing left to do."""
    answers: dict[str, pb.SampleResponse] = {}
    unfinished = 1
    while unfinished:
        result, buffers = engine.handle(sampling.Decode(0.0))
        decoded = sampling.decoded(result)
        assert not decoded.failed, decoded.failed
        for name, body in zip(decoded.finished, buffers, strict=True):
            answers[name] = pb.SampleResponse.FromString(body)
        unfinished = decoded.unfinished
    return answers


def tokens(sequence: pb.SampledSequence) -> list[int]:
    return np.frombuffer(sequence.tokens, "<i4").tolist()


def floats(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")


def prompt(seed: int, length: int = 10) -> list[int]:
    return np.random.default_rng(seed).integers(5, VOCAB, length).tolist()


def plain(base: Path, adapter: Path | None = None) -> PreTrainedModel:
    if adapter is not None:
        return load_peft(base, adapter).eval()
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def plain_logprobs(
    model: PreTrainedModel, ids: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """(len(ids), V): row i is about the token after ids[: i + 1]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    return torch.log_softmax(logits.float() / temperature, dim=-1)


def trained(engine: Engine, base: Path, folder: Path, **lora: Any) -> Client:
    """A run some steps away from its base, and its checkpoint in `folder`."""
    client = Client(engine, base, run=f"run-{folder.name}")
    client.create(**lora)
    for step in range(3):
        client.backward(samples(step))
        client.step(learning_rate=0.05)
    engine.handle(ops.SaveCheckpoint(client.run, "sampler_weights", str(folder), str(base)))
    return client
