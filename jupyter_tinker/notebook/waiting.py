"""Whether a thread waits for a Tinker server, seen from another one and without changes to the SDK.

One that waits is inside a call of the SDK (or of this package), or runs an event loop with a task
that is. The call tells one wait from the next.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

_CALLS = ("tinker.", "jupyter_tinker.notebook.client")
_DEEPEST = 300  # frames that are looked at


def call_of(thread: int) -> FrameType | None:
    """The outermost call of the SDK that a thread is in, by its identifier, or that a task of its
    event loop awaits."""
    found = None
    loops = []
    for frame in _stack(thread):
        if _is_call(frame):
            found = frame
        elif _name(frame) == "asyncio.base_events" and frame.f_code.co_name == "run_forever":
            loops.append(frame.f_locals["self"])
    return found or next(filter(None, map(_call_of_loop, loops)), None)


def _stack(thread: int) -> Iterator[FrameType]:
    """A thread's frames, innermost first."""
    frame = sys._current_frames().get(thread)
    for _ in range(_DEEPEST):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _call_of_loop(loop: asyncio.AbstractEventLoop) -> FrameType | None:
    tasks: set[Any] = set()
    with suppress(RuntimeError):  # they changed while they were counted, again and again
        tasks = asyncio.all_tasks(loop)
    frames = (frame for task in tasks for frame in _awaited(task.get_coro()))
    return next(filter(_is_call, frames), None)


def _awaited(coroutine: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of what it awaits, outermost first."""
    for _ in range(_DEEPEST):
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            yield frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
        if type(coroutine).__name__ == "coroutine_wrapper":  # of an __await__; it hides what it has
            coroutine = next(iter(gc.get_referents(coroutine)), None)
        if coroutine is None:
            return


def _name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_call(frame: FrameType) -> bool:
    return _name(frame).startswith(_CALLS)
