"""Tells how far long work is, and not too often. Knows nothing of who listens."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..wire.progress import Progress

Report = Callable[[Progress], None]

_GAP_SECONDS = 0.2


def unheard(progress: Progress) -> None:
    """Nobody listens."""


class Sparing:
    """Passes on what is new, and of one piece of work at most five a second."""

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._what = ""
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        if progress.what == self._what and now < self._next:
            return
        self._what = progress.what
        self._next = now + _GAP_SECONDS
        self._report(progress)
