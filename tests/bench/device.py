"""What the benchmark's own models compute on and in: what the engine chooses, too."""

from __future__ import annotations

import os
import resource

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
_ASKED = "TINKER_BENCH_DTYPE"  # for this process and those that it starts


def ask_for(dtype: str) -> None:
    """That models are computed in this type."""
    os.environ[_ASKED] = dtype


def dtype() -> torch.dtype:
    """That models are computed in."""
    return getattr(torch, os.environ.get(_ASKED, "bfloat16" if CUDA else "float32"))


def wait() -> None:
    """Until all that was asked for is done."""
    if CUDA:
        torch.cuda.synchronize()


def peak_mib() -> float:
    """Of the memory that the device computes in."""
    if CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
