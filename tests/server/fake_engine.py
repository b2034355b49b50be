"""An engine in the server's own process: it samples made-up tokens, one to a sequence and step,
and trains runs whose weights are digests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from jupyter_tinker.server.engine_client import EngineDied
from jupyter_tinker.server.supervisor import EngineNotStarted
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire import tinker_pb2 as pb
from tests.server.fake_runs import FakeRuns, State

FORBIDDEN = 999  # a token that is not in the vocabulary
DEADLY = 666  # a token that kills the engine when it is decoded


Answer = tuple[dict[str, Any], list[Any]]
STATUS = ops.EngineStatus("cpu", "float32", "eager", "it is a fake", "0", 0, [], [])


class FakeEngine:
    """Stands in for the supervisor and the engine behind it.

    `before` and `after` are called around what each operation does, and may kill the engine.
    """

    def __init__(self, parent: Any = None, *, step_seconds: float = 0.001) -> None:
        self.generation = 0
        self.running = False
        self.starting = False
        self.busy_seconds = 0.0
        self.cell_began: float | None = None
        self.operating = False
        self.status: ops.EngineStatus | None = None
        self.on_start: Callable[[ops.EngineStatus], None] = lambda status: None
        self.on_death: Callable[[str], None] = lambda reason: None
        self.step_seconds = step_seconds
        self.ops: list[ops.Op] = []
        self.busy: ops.Op | None = None  # what it is at
        self.runs = FakeRuns()
        self.loaded: dict[str, sampling.LoadSampler | sampling.SnapshotSampler] = {}
        self.copies: dict[str, str] = {}  # the weights of samplers that are copies of a run's
        self.most_loaded = 0
        self.held: dict[str, dict[str, Any]] = {}
        self.most_held = 0
        self.reply: list[int] = []  # what is sampled, if anything is set
        self.paused = asyncio.Event()  # sampling; cleared: it waits
        self.paused.set()
        self.trains = asyncio.Event()  # training; cleared: it waits, in the midst of an operation
        self.trains.set()
        self.before: Callable[[ops.Op], None] = lambda op: None
        self.after: Callable[[ops.Op], None] = lambda op: None
        self._one = asyncio.Lock()
        self._stopped = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def manager(self) -> Any:
        return None  # there is no kernel

    @property
    def cell_seconds(self) -> float | None:
        return None

    def holds(self, generation: int) -> bool:
        return self.running and self.generation == generation

    async def ensure_started(self) -> int:
        if self._stopped:
            raise EngineNotStarted("the server is shutting down")
        if not self.running:
            self.running = True
            self.generation += 1
            self.status = STATUS
            self.on_start(STATUS)
        return self.generation

    async def stop(self) -> None:
        self._stopped = True
        self._end()

    async def release(self, reason: str) -> bool:
        ran, _ = self.running, self._end()
        return ran

    def die(self) -> None:
        """As if its process had been killed."""
        if self.running:
            self._end()
            self.on_death("the engine died")

    def _end(self) -> None:
        self.running = False
        self.status = None
        self.runs = FakeRuns()
        self.loaded.clear()
        self.copies.clear()
        self.held.clear()

    async def request(
        self, op: ops.Op, *, generation: int | None = None, again: bool = False
    ) -> Answer:
        return await (await self.begin(op, generation=generation, again=again))

    async def begin(
        self, op: ops.Op, *, generation: int | None = None, again: bool = False
    ) -> Awaitable[Answer]:
        if generation is None:
            generation = await self.ensure_started()
        elif not self.holds(generation):
            raise EngineDied("the engine that held it is gone")
        # What was sent is done, whether or not anybody waits for it.
        task = asyncio.create_task(self._do(op, generation))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _do(self, op: ops.Op, generation: int) -> Answer:
        async with self._one:
            self._alive(generation)
            self.busy = op
            try:
                answer = await self._done(op, generation)
            finally:
                self.busy = None
            state = self.runs.states[op.run] if isinstance(op, ops.SnapshotRun) else None
        if isinstance(op, ops.SnapshotRun):
            assert state is not None
            answer = await self._written(op, generation, state), []
        return answer

    async def _done(self, op: ops.Op, generation: int) -> Answer:
        await (self.paused if isinstance(op, sampling.Decode) else self.trains).wait()
        await asyncio.sleep(0)
        self._alive(generation, op)
        self.ops.append(op)
        self.before(op)
        self._alive(generation, op)
        if isinstance(op, sampling.Decode):
            answer = await self._decode(op)
        else:
            answer = self._answer(op)
        self.after(op)
        self._alive(generation, op)
        return answer

    async def _written(self, op: ops.SnapshotRun, generation: int, state: State) -> dict[str, Any]:
        """Write a snapshot, beside what the engine does meanwhile."""
        await asyncio.sleep(0)
        self._alive(generation)
        self.before(op)
        self._alive(generation)
        answer = self.runs.written(op, state)
        self.after(op)
        self._alive(generation)
        return answer

    def _alive(self, generation: int, op: ops.Op | None = None) -> None:
        """Raises `EngineDied`; `op` is what the engine was at."""
        if not self.holds(generation):
            raise EngineDied("the engine died", during=op is not None and op.waits)

    def count(self, kind: type[ops.Op]) -> int:
        return sum(isinstance(op, kind) for op in self.ops)

    def _answer(self, op: ops.Op) -> Answer:
        if isinstance(op, sampling.LoadSampler | sampling.SnapshotSampler):
            self.loaded[op.sampler] = op
            self.most_loaded = max(self.most_loaded, len(self.loaded))
            if isinstance(op, sampling.SnapshotSampler):
                known = self.runs.states.get(op.run)
                self.copies[op.sampler] = "" if known is None else known.weights
        elif isinstance(op, sampling.UnloadSampler):
            self.loaded.pop(op.sampler, None)
            self.copies.pop(op.sampler, None)
        elif isinstance(op, sampling.Sample):
            self._accept(op)
        elif isinstance(op, sampling.CancelSample):
            self.held.pop(op.request, None)
        return self.runs.do(op) or ({}, [])

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
                    raise EngineDied("the engine died", during=True)
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
