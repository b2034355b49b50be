"""What the benchmark's own models compute on: what the engine chooses, too."""

from __future__ import annotations

import resource

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32


def wait() -> None:
    """Until all that was asked for is done."""
    if CUDA:
        torch.cuda.synchronize()


def peak_mib() -> float:
    """Of the memory that the device computes in."""
    if CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
