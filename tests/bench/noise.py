"""How much CPU other people's processes used while something was timed, and waiting until it is
little."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

import psutil

_QUIET = 0.15  # cores


@dataclass
class Patience:
    """The seconds that may be spent, in all, on waiting for strangers to be done."""

    seconds: float = 0.0

    def wait(self) -> None:
        """Until strangers have used little CPU for a second and a half, or patience is spent."""
        while self.seconds > 0:
            with Noise() as noise:
                time.sleep(1.5)
            if noise.cores < _QUIET:
                return
            self.seconds -= 1.5


class Noise:
    """`with Noise() as noise:`; `noise.cores` is what neither we nor our descendants used."""

    def __enter__(self) -> Noise:
        me = psutil.Process()
        self._own = [me, *me.children(recursive=True)]
        self._before = self._now()
        self.cores = 0.0
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        me = psutil.Process()
        known = {process.pid for process in self._own}
        self._own += [p for p in me.children(recursive=True) if p.pid not in known]
        wall, busy, own = (b - a for a, b in zip(self._before, self._now(), strict=True))
        self.cores = max(0.0, busy - own) / wall

    def _now(self) -> tuple[float, float, float]:
        total = psutil.cpu_times()
        busy = total.user + total.system + getattr(total, "nice", 0.0)
        return time.perf_counter(), busy, sum(map(_seconds, self._own))


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    # A child that has ended is part of its parent's sums.
    ended = times.children_user + times.children_system
    return float(times.user + times.system + ended)
