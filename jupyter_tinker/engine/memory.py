"""The memory of the device that computes: how much is used, and which errors say it ran out.

Knows nothing of runs or models.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import cache

import psutil
import torch

from . import container

# On the CPU, and from libraries on a GPU, torch raises a plain RuntimeError.
_MARKS = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")


def ran_out(error: RuntimeError | MemoryError) -> bool:
    """Whether an error says that there was not enough memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(mark in str(error) for mark in _MARKS)


def reason(error: RuntimeError | MemoryError) -> str:
    """What it says, in a line."""
    return str(error).partition("\n")[0][:300] or "Python could allocate no more"


def release() -> None:
    """Give back what nothing refers to, and what is kept for later use. Of use only once no
    traceback holds tensors any more, which is after the `except` block."""
    gc.collect()
    give_back()


def give_back() -> None:
    """Let the system have what allocators keep of memory that is free."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; others have no such function."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


def used(device: torch.device) -> int:
    """Bytes: resident set on the CPU, allocated memory on an accelerator."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return int(psutil.Process().memory_info().rss)


def total(device: torch.device) -> int | None:
    """Bytes: what there is of what `used` counts; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return min(psutil.virtual_memory().total, container.memory() or 2**63)
