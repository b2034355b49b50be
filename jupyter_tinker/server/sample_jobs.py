"""A request to sample, as the pump works on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..wire import sampling
from ..wire.ops import OpError
from .samplers import Target

Outcome = bytes | OpError  # the protobuf SampleResponse, or why there is none


@dataclass(eq=False)
class Job:
    """A request to sample. `finish` is called once; `stream`, if it is there, with new tokens of
    each of its samples."""

    id: str
    target: Target
    body: bytes  # JSON SampleRequest
    samples: int
    finish: Callable[[Outcome], None]
    stream: Callable[[list[list[int]]], None] | None = None
    deaths: int = 0  # of engines that were at it; after the first they are at nothing beside it
    deadly_loads: int = 0  # of its sampler
    streamed: bool = False
    yields_until: float = 0.0  # monotonic: before this, others go first

    def operation(self) -> sampling.Sample:
        """What the engine is told of it."""
        return sampling.Sample(self.id, self.target.name, self.stream is not None, self.body)


def copy_is_gone() -> OpError:
    """Of a job whose sampler was a copy of a run's weights."""
    return OpError(
        "The engine that held this sampling client's weights ended, and it is not known how they "
        "were made. Make a new sampling client.",
        "server",
    )


def engine_gone(why: str = "") -> OpError:
    """Of a job that is not tried again."""
    because = f" ({why})" if why else ""
    return OpError(
        f"The engine ended while it computed this sample{because}; sample again.", "server"
    )
