"""Sampling: what is asked of the engine for it, and what the engine answers.

The server hands the engine whole `asample` bodies (`wire.sample_request` reads them) and then asks
it, again and again, to `Decode`: every answer brings what was finished meanwhile, and between two
of them the engine can do something else, such as a training step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .ops import Category, Op


@dataclass(frozen=True)
class LoadSampler(Op):
    """Make a base model, with the adapter of a checkpoint on it if one is named, ready to sample.

    Result: empty. A sampler of that name is replaced once its requests are done.
    """

    name: ClassVar[str] = "load_sampler"
    sampler: str
    base_model: str
    base_path: str
    checkpoint: str | None  # folder


@dataclass(frozen=True)
class SnapshotSampler(Op):
    """Make a copy of a run's weights ready to sample. Result: empty.

    A sampler of that name gets the new weights; what it is generating goes on with them.
    """

    name: ClassVar[str] = "snapshot_sampler"
    sampler: str
    run: str


@dataclass(frozen=True)
class UnloadSampler(Op):
    """Free a sampler's memory; its unfinished requests fail. Unknown samplers are not an error.

    Result: empty.
    """

    name: ClassVar[str] = "unload_sampler"
    sampler: str


@dataclass(frozen=True)
class Sample(Op):
    """Accept a request to sample, named `request`; `Decode` then works on it. Result: empty.

    With `stream`, the answers of `Decode` carry its tokens as they are sampled.
    """

    name: ClassVar[str] = "sample"
    request: str
    sampler: str
    stream: bool
    body: bytes = field(metadata={"buffer": True})  # JSON SampleRequest


@dataclass(frozen=True)
class CancelSample(Op):
    """Give up a request. Unknown and finished ones are not an error. Result: empty."""

    name: ClassVar[str] = "cancel_sample"
    request: str


@dataclass(frozen=True)
class Decode(Op):
    """Work on the requests that were accepted: at least one step, and then as many as begin within
    `seconds`. A step is the prompts of some requests, or a token for each sequence of a sampler.

    Result: `Decoded`; buffer i: the protobuf `SampleResponse` of `finished[i]`.
    """

    name: ClassVar[str] = "decode"
    seconds: float


@dataclass(frozen=True)
class SampleFailure:
    request: str
    error: str
    category: Category


@dataclass(frozen=True)
class Decoded:
    finished: list[str]  # requests
    failed: list[SampleFailure]
    streamed: dict[str, list[list[int]]]  # by request: new tokens of each of its samples
    unfinished: int  # requests that still need `Decode`
    prompt_tokens: int  # read in this operation
    sampled_tokens: int
    seconds: float


def decoded(result: dict[str, Any]) -> Decoded:
    """`Decoded` from a reply's result."""
    failed = [SampleFailure(**failure) for failure in result["failed"]]
    return Decoded(**{**result, "failed": failed})
