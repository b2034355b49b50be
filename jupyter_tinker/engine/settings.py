"""What of torch and of the process a cell can switch for all: kept apart for people and training.

A person's settings hold from cell to cell, as in any notebook, and end where an operation begins.
Knows nothing of kernels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from operator import attrgetter
from typing import Any

import numpy as np
import torch

# To set it to what it was is not enough: MKL, asked once for a number of threads, no longer takes
# fewer where that is better.
_SET_NUM_THREADS = torch.set_num_threads

_Setting = tuple[Callable[[], Any], Callable[[Any], Any]]  # how it is read, and set


def _flag(owner: Any, name: str) -> _Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _precision(path: str) -> _Setting:
    """Of float32 products, as torch names it from 2.9 on."""
    owner = attrgetter(path)
    return (
        lambda: owner(torch.backends).fp32_precision,
        lambda value: setattr(owner(torch.backends), "fp32_precision", value),
    )


def _autocast(device: str) -> _Setting:
    return (
        lambda: torch.is_autocast_enabled(device),
        lambda on: torch.set_autocast_enabled(device, on),
    )


def _set_filters(filters: list[Any]) -> None:
    warnings.resetwarnings()  # which also makes Python forget what it has decided by them
    warnings.filters.extend(filters)  # type: ignore[attr-defined, unused-ignore]


def _set_default_device(device: torch.device) -> None:
    # To name the CPU would cost every call of torch a detour.
    torch.set_default_device(None if device == torch.device("cpu") else device)


_SETTINGS: list[_Setting] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda modes: torch.set_anomaly_enabled(*modes),
    ),
    _autocast("cpu"),
    _autocast("cuda"),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    _flag(torch.backends.cuda.matmul, "allow_tf32"),
    _flag(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    _flag(torch.backends.cudnn, "enabled"),
    _flag(torch.backends.cudnn, "benchmark"),
    _flag(torch.backends.cudnn, "deterministic"),
    _flag(torch.backends.cudnn, "allow_tf32"),
    _flag(torch.backends.mkldnn, "enabled"),
    # Behind the older names, which set some of these.
    *(_precision(path) for path in ("cuda.matmul", "cudnn.conv", "mkldnn.matmul", "mkldnn.conv")),
    (np.geterr, lambda handling: np.seterr(**handling)),
    (lambda: list(warnings.filters), _set_filters),
    (os.getcwd, os.chdir),
]


class Apart:
    """Whose settings are in force: those of training, or between `enter` and `leave` a person's."""

    def __init__(self) -> None:
        self._training: list[Any] = []
        self._person: list[Any] | None = None
        self._modes: list[Any] = []

    def enter(self) -> None:
        self._training = _read()
        if self._person is not None:
            _apply(self._person)
        torch.set_num_threads = _keep_threads

    def leave(self) -> None:
        torch.set_num_threads = _SET_NUM_THREADS
        self._person = _read()
        torch.set_default_device(None)  # the CPU, named, is no other device but slower
        _apply(self._training)
        torch.set_flush_denormal(False)
        if torch.is_inference_mode_enabled():  # entered and not left
            self._modes.append(torch.inference_mode(False))
            self._modes[-1].__enter__()


def _keep_threads(_: int) -> None:
    warnings.warn(
        "torch.set_num_threads does nothing on the engine's kernel: the numbers of training depend "
        "on how many threads compute them.",
        stacklevel=2,
    )


def _read() -> list[Any]:
    return [_or_none(read) for read, _ in _SETTINGS]


def _or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception:  # such as the current folder, when it was deleted
        return None


def _apply(wanted: list[Any]) -> None:
    for (read, write), value in zip(_SETTINGS, wanted, strict=True):
        if value is not None and _or_none(read) != value:
            with suppress(Exception):
                write(value)
