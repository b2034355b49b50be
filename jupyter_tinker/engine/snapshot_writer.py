"""Writes snapshots beside the engine's work: one thread, which steps back for what computes.

Knows nothing of what is in a snapshot.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..wire.ops import SnapshotInfo
from . import snapshot
from .run import Run

Answer = tuple[dict[str, Any], list[bytes]]

_MOST_COPIES = 2  # in memory: one is written while the next waits
_LOWEST_PRIORITY = 19


class SnapshotWriter:
    """Takes copies in the caller's thread, and writes them in its own, in the order they came."""

    def __init__(self, *, thrifty: bool = False) -> None:
        """`thrifty`: in memory is one copy at a time, and none is left for the next."""
        self._thrifty = thrifty
        self._room = threading.BoundedSemaphore(1 if thrifty else _MOST_COPIES)
        self._spare: list[torch.Tensor] = []  # at most one buffer, for the next copy
        self._thread = ThreadPoolExecutor(1, "snapshots", initializer=_step_back)

    def take(self, run: Run, file: Path) -> Future[Answer]:
        """Copy the run's state, which it may change once this returns, and have it written.

        Waits while there is no room for another copy. The future holds the answer, a
        `SnapshotInfo`, or raises `OpError`.
        """
        started = time.perf_counter()
        self._room.acquire()
        try:
            copy = snapshot.copy(run, self._spare.pop() if self._spare else None)
            blocked = time.perf_counter() - started
            return self._thread.submit(self._write, copy, file, blocked)
        except BaseException:
            self._room.release()
            raise

    def _write(self, copy: snapshot.Copy, file: Path, blocked: float) -> Answer:
        started = time.perf_counter()
        try:
            size, sha256 = snapshot.write(copy, file)
        finally:
            self._spare[:] = [] if self._thrifty else [copy.buffer]
            self._room.release()
        seconds = time.perf_counter() - started
        return asdict(SnapshotInfo(size, sha256, copy.step, blocked, seconds)), []


def _step_back() -> None:
    # Elsewhere a priority belongs to the whole process.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
