"""Two pieces of work at once, each with half of the processor's threads.

Threads that compute one thing together wait for the slowest of them after every single product: for
little where the processor is theirs alone, and for most of the time where another process takes its
part of it. Pieces that share nothing wait once, at the end. Knows nothing of what the work is.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_T = TypeVar("_T")


def possible() -> bool:
    """Whether there are threads for two."""
    return torch.get_num_threads() > 1


def both(left: Callable[[], _T], right: Callable[[], _T]) -> tuple[_T, _T]:
    """What they return. If one raises, this raises too, once both have ended."""
    threads = torch.get_num_threads()
    half = threads // 2
    # A number of threads belongs to the thread that asks for it. The left is done here, because a
    # thread of its own would keep memory of its own, too.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(half,)) as pool:
        second = pool.submit(right)
        torch.set_num_threads(threads - half)
        try:
            first = left()
        finally:
            torch.set_num_threads(threads)
    return first, second.result()
