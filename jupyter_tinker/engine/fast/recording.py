"""Work of a GPU that is done again and again, recorded once and then launched as a whole.

A pass is thousands of kernels, and of few tokens each of them takes less time than its launch. A
CUDA graph holds them all (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs); it
reads and writes the same memory each time, and computes to the last bit what it was recorded from.
Knows nothing of models.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

import torch

from .. import memory

_T = TypeVar("_T")

_log = logging.getLogger("jupyter_tinker.engine")


class Graph(Protocol):
    def replay(self) -> None: ...

    def pool(self) -> Any: ...


class Room:
    """The memory of recordings of which none is wanted any more when another one is done."""

    def __init__(self) -> None:
        self._graphs: WeakSet[Graph] = WeakSet()

    def pool(self) -> Any:
        """None where there is none yet, or no more."""
        return next((graph.pool() for graph in self._graphs), None)

    def add(self, graph: Graph) -> None:
        self._graphs.add(graph)


class Recording(Generic[_T]):
    """What `work` returned, and the way to have it done again."""

    def __init__(self, graph: Graph, result: _T) -> None:
        self._graph = graph
        self.result = result

    def again(self) -> _T:
        """What `work` returns is in the memory of the first time."""
        self._graph.replay()
        return self.result


class Repeated(Generic[_T]):
    """Work that is done as it is the first time, recorded the second, and replayed from then on."""

    def __init__(self, device: torch.device, room: Room) -> None:
        self._device, self._room = device, room
        self._uses = 0
        self._recording: Recording[_T] | None = None

    def __call__(self, work: Callable[[], _T]) -> _T:
        """`work` is the same each time. It is not held, for it may hold this."""
        if self._uses == 1:
            self._recording = recorded(work, self._device, self._room)
        self._uses += 1
        return work() if self._recording is None else self._recording.again()


def possible(device: torch.device) -> bool:
    return device.type == "cuda"


def recorded(work: Callable[[], _T], device: torch.device, room: Room) -> Recording[_T] | None:
    """Of work that has been done once before, since what a kernel needs for its first time cannot
    be recorded; it is not done now. None where the work holds what cannot be recorded, which is
    logged."""
    try:
        graph, result = record(work, device, room.pool())
    except RuntimeError as error:
        if memory.ran_out(error):
            raise
        reason = str(error).partition("\n")[0]
        _log.warning("A pass is computed kernel by kernel: it cannot be recorded (%s).", reason)
        return None
    room.add(graph)
    return Recording(graph, result)


def record(work: Callable[[], _T], device: torch.device, pool: Any) -> tuple[Graph, _T]:
    """What was recorded, and where its result will be."""
    graph = torch.cuda.CUDAGraph()
    current, beside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    beside.wait_stream(current)
    with torch.cuda.stream(beside):
        # Other threads may go on with what they do.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            result = work()
        except BaseException:
            with suppress(RuntimeError):  # of no use any more
                graph.capture_end()
            raise
        graph.capture_end()
    current.wait_stream(beside)
    return graph, result
