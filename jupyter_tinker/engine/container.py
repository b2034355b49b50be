"""What a container grants to the processes in it, by Linux's control groups, versions 2 and 1.

None wherever nothing is limited, or this is no container.
"""

from __future__ import annotations

import math
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")  # as a container sees its own


def memory() -> int | None:
    """Bytes."""
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((_CGROUP / file).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def cpus() -> int | None:
    """Processors that can compute all the time, rounded up: where a quota of time is spread over
    more threads, all of them wait until it is renewed."""
    quota = _quota()
    if quota is None:
        return None
    microseconds, period = quota
    return max(1, math.ceil(microseconds / period))


def _quota() -> tuple[int, int] | None:
    """Microseconds of computing in each period of so many microseconds."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return int(quota), int(period)
    except (OSError, ValueError):
        pass
    try:
        quota, period = (
            (_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
        )
        return (int(quota), int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None
