"""An engine in the server's own process: it samples made-up tokens, one to a sequence and step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from jupyter_tinker.server.supervisor import EngineDied
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire import tinker_pb2 as pb

FORBIDDEN = 999  # a token that is not in the vocabulary
DEADLY = 666  # a token that kills the engine when it is decoded


class FakeEngine:
    """Stands in for the supervisor and the engine behind it."""

    def __init__(self, parent: Any = None, *, step_seconds: float = 0.001) -> None:
        self.generation = 0
        self.running = False
        self.starting = False
        self.status = None
        self.step_seconds = step_seconds
        self.ops: list[ops.Op] = []
        self.loaded: dict[str, sampling.LoadSampler | sampling.SnapshotSampler] = {}
        self.most_loaded = 0
        self.held: dict[str, dict[str, Any]] = {}
        self.most_held = 0
        self.reply: list[int] = []  # what is sampled, if anything is set
        self.paused = asyncio.Event()
        self.paused.set()
        self.before: Callable[[ops.Op], None] = lambda op: None
        self._one = asyncio.Lock()

    async def ensure_started(self) -> int:
        if not self.running:
            self.running = True
            self.generation += 1
        return self.generation

    async def stop(self) -> None:
        self.die()

    def die(self) -> None:
        self.running = False
        self.loaded.clear()
        self.held.clear()

    async def request(self, op: ops.Op) -> tuple[dict[str, Any], list[Any]]:
        generation = await self.ensure_started()
        async with self._one:
            if isinstance(op, sampling.Decode):
                await self.paused.wait()
            await asyncio.sleep(0)
            if not self.running or self.generation != generation:
                raise EngineDied("the engine died")
            self.ops.append(op)
            self.before(op)
            if isinstance(op, sampling.Decode):
                answer = await self._decode(op)
                if not self.running or self.generation != generation:
                    raise EngineDied("the engine died")
                return answer
            return self._do(op), []

    def count(self, kind: type[ops.Op]) -> int:
        return sum(isinstance(op, kind) for op in self.ops)

    def _do(self, op: ops.Op) -> dict[str, Any]:
        if isinstance(op, sampling.LoadSampler | sampling.SnapshotSampler):
            self.loaded[op.sampler] = op
            self.most_loaded = max(self.most_loaded, len(self.loaded))
        elif isinstance(op, sampling.UnloadSampler):
            self.loaded.pop(op.sampler, None)
        elif isinstance(op, sampling.Sample):
            self._accept(op)
        elif isinstance(op, sampling.CancelSample):
            self.held.pop(op.request, None)
        elif isinstance(op, ops.CreateRun):
            return asdict(ops.RunInfo(op.lora, 1, 0))
        return {}

    def _accept(self, op: sampling.Sample) -> None:
        body = json.loads(op.body)
        prompt = [token for chunk in body["prompt"]["chunks"] for token in chunk["tokens"]]
        if FORBIDDEN in prompt:
            raise ops.OpError(f"token {FORBIDDEN} is not in the vocabulary")
        if op.sampler not in self.loaded:
            raise ops.OpError(f"there is no sampler {op.sampler!r}", "server")
        self.held[op.request] = {
            "prompt": prompt,
            "samples": body.get("num_samples", 1),
            "left": body["sampling_params"].get("max_tokens") or (99 if self.reply else 4),
            "tokens": [],
            "stream": op.stream,
            "topk": body.get("topk_sample_logprobs", 0),
            "sampler": op.sampler,
        }
        self.most_held = max(self.most_held, sum(job["samples"] for job in self.held.values()))

    async def _decode(self, op: sampling.Decode) -> tuple[dict[str, Any], list[Any]]:
        steps = 1 + int(op.seconds / 0.01)
        finished, bodies, streamed, failed = [], [], {}, []
        for _ in range(steps):
            await asyncio.sleep(self.step_seconds)
            for name, job in list(self.held.items()):
                if DEADLY in job["prompt"]:
                    self.die()
                    raise EngineDied("the engine died")
                place = len(job["tokens"])
                token = self.reply[place] if self.reply else job["prompt"][-1] + place + 1
                job["tokens"].append(token)
                job["left"] -= 1
                stopped = bool(self.reply) and place == len(self.reply) - 1
                if job["stream"]:
                    new = streamed.setdefault(name, [[] for _ in range(job["samples"])])
                    for sample in new:
                        sample.append(token)
                if not job["left"] or stopped:
                    del self.held[name]
                    finished.append(name)
                    bodies.append(response(job["tokens"], job["samples"], stopped, job["topk"]))
        result = sampling.Decoded(finished, failed, streamed, len(self.held), 0, 0, 0.0)
        return asdict(result), bodies


def response(tokens: list[int], samples: int, stopped: bool = False, topk: int = 0) -> bytes:
    import numpy as np

    count = len(tokens)
    sequence = pb.SampledSequence(
        stop_reason=pb.STOP_REASON_STOP if stopped else pb.STOP_REASON_LENGTH,
        tokens=np.asarray(tokens, "<i4").tobytes(),
        logprobs=(-np.arange(1, count + 1, dtype="<f4")).tobytes(),
    )
    if topk:
        sequence.topk_sampled_logprobs.CopyFrom(
            pb.TopkLogprobs(
                token_ids=np.repeat(np.asarray(tokens, "<i4"), topk).tobytes(),
                logprobs=np.full(count * topk, -0.5, "<f4").tobytes(),
                k=topk,
                length=count,
            )
        )
    return pb.SampleResponse(sequences=[sequence] * samples).SerializeToString()


def tokens_of(body: bytes) -> list[int]:
    import numpy as np

    return np.frombuffer(pb.SampleResponse.FromString(body).sequences[0].tokens, "<i4").tolist()
