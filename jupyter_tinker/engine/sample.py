"""All sampling of an engine: its samplers, and whose turn it is.

Samplers take turns, a step at a time, and share one budget of memory for keys and values. What
goes wrong in a step fails the requests that took part in it, and nothing else. Knows nothing of
training, messages or HTTP.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ..wire import sample_request, sampling
from ..wire.ops import OpError
from ..wire.tinker import BadRequest
from . import completion
from .adapter import Views
from .base_model import BaseModel
from .completion import Completion, StopText
from .inference import InferenceModel
from .lane import Lane, Sampler

_log = logging.getLogger("jupyter_tinker.engine")

_CPU_CACHE_BYTES = 1 << 30
_CUDA_CACHE_SHARE = 0.25  # of the device's memory


@dataclass
class _Base:
    """What sampling needs of a base model, made when it is first sampled from."""

    model: InferenceModel
    ends: frozenset[int]  # tokens that end a text
    _tokenizer: Tokenizer | None = field(default=None, repr=False)

    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = completion.tokenizer(self.model.base.path)
        return self._tokenizer


class Sampling:
    """Samplers and their requests."""

    def __init__(self, cache_bytes: int = 0) -> None:
        self.cache_bytes = cache_bytes  # of keys and values; 0: what suits the device
        self.pack = True  # base models' weights once more, in a faster layout
        self.lanes: dict[str, Lane] = {}  # by the sampler's name; the first one's turn is next
        self._bases: dict[Path, _Base] = {}
        self._requests: dict[str, tuple[Completion, Lane]] = {}
        self._failed: list[sampling.SampleFailure] = []

    # Samplers

    def load(self, name: str, base: BaseModel, views: Views | None, scale: float = 1.0) -> None:
        """A sampler of this base model, and of a copy of an adapter's parameters. Raises
        `OpError`."""
        model = self._base(base).model
        weights = None if views is None else model.lay_out(views, scale)
        lane = self.lanes.get(name)
        if lane is None or lane.sampler.model is not model:
            self.unload(name)
            self.lanes[name] = Lane(Sampler(name, model, weights))
        else:
            lane.sampler.weights = weights

    def unload(self, name: str) -> None:
        lane = self.lanes.pop(name, None)
        if lane is not None:
            self._fail(lane.completions, OpError("this sampler's session has ended"))

    # Requests

    def add(self, op: sampling.Sample) -> None:
        """Take a request. Raises `OpError`."""
        lane = self.lanes.get(op.sampler)
        if lane is None:
            raise OpError(f"the engine has no sampler {op.sampler!r}; load it first", "server")
        try:
            spec = sample_request.read(op.body)
        except BadRequest as error:
            raise OpError(str(error)) from None
        base = self._base(lane.sampler.model.base)
        request = Completion(op.request, spec, base.model.base.limits, base.ends, stream=op.stream)
        if spec.stop_strings:
            request.stop_text = StopText(base.tokenizer(), spec.stop_strings)
        lane.waiting.append(request)
        self._requests[op.request] = request, lane

    def cancel(self, name: str) -> None:
        request, lane = self._requests.pop(name, (None, None))
        if request is not None and lane is not None:
            lane.remove(request)

    def work(self, seconds: float) -> tuple[sampling.Decoded, list[bytes]]:
        """At least one step, if there is anything to do, and as many as begin within `seconds`."""
        started = time.perf_counter()
        before = self._counts()
        finished: list[Completion] = []
        lane = self._next_lane()
        while lane is not None:
            finished += self._step(lane)
            within = time.perf_counter() - started < seconds
            lane = self._next_lane() if within else None
        failed, self._failed = self._failed, []
        after = self._counts()
        streaming = [c for c, _ in self._requests.values() if c.stream]
        answer = sampling.Decoded(
            finished=[request.name for request in finished],
            failed=failed,
            streamed={c.name: c.take_streamed() for c in (*streaming, *finished) if c.stream},
            unfinished=len(self._requests),
            prompt_tokens=after[0] - before[0],
            sampled_tokens=after[1] - before[1],
            seconds=time.perf_counter() - started,
        )
        return answer, [request.answer() for request in finished]

    def _next_lane(self) -> Lane | None:
        """The first that has something to do; it goes behind the others."""
        for name, lane in self.lanes.items():
            if lane.busy:
                self.lanes[name] = self.lanes.pop(name)
                return lane
        return None

    def _step(self, lane: Lane) -> list[Completion]:
        others = sum(other.reserved_bytes for other in self.lanes.values() if other is not lane)
        try:
            finished = lane.step(self._cache_bytes(lane) - others)
        except OpError as error:
            self._fail(lane.abandon(), error)
            return []
        except Exception as error:
            _log.exception("a step of sampler %s failed", lane.sampler.name)
            reason = str(error).partition("\n")[0][:300]
            problem = OpError(f"the engine failed: {type(error).__name__}: {reason}", "server")
            self._fail(lane.abandon(), problem)
            return []
        for request in finished:
            del self._requests[request.name]
        return finished

    def _fail(self, requests: list[Completion], error: OpError) -> None:
        for request in requests:
            if self._requests.pop(request.name, None) is not None:
                failure = sampling.SampleFailure(request.name, error.message, error.category)
                self._failed.append(failure)

    def _counts(self) -> tuple[int, int]:
        lanes = self.lanes.values()
        prompt = sum(lane.prompt_tokens for lane in lanes)
        return prompt, sum(lane.sampled_tokens for lane in lanes)

    def _cache_bytes(self, lane: Lane) -> int:
        device = lane.sampler.model.base.device
        if self.cache_bytes:
            return self.cache_bytes
        if device.type == "cuda":
            return int(torch.cuda.get_device_properties(device).total_memory * _CUDA_CACHE_SHARE)
        return _CPU_CACHE_BYTES

    def _base(self, base: BaseModel) -> _Base:
        if base.path not in self._bases:
            self._bases[base.path] = _Base(InferenceModel(base, pack=self.pack), _ends(base))
        return self._bases[base.path]


def _ends(base: BaseModel) -> frozenset[int]:
    """The tokens that the model's makers say end a text."""
    for config in (getattr(base.model, "generation_config", None), base.model.config):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return frozenset([ends] if isinstance(ends, int) else ends)
    return frozenset()
