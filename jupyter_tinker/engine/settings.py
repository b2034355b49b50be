"""What of torch and of the process a cell can switch for all: kept apart for people and training.

A person's settings hold from cell to cell, as in any notebook, and end where an operation begins,
also those of a task that goes on behind its cell. Knows nothing of kernels.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from operator import attrgetter
from typing import Any

import numpy as np
import torch
import torch.utils._python_dispatch as dispatching
from torch import overrides
from torch.nn.modules import module as modules

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


def _cuda_device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0


# Hooks of all modules: dictionaries whose identity the handles know, and which kind those of
# gradients are.
_HOOKS = [
    value
    for name, value in vars(modules).items()
    if name.startswith("_global_") and isinstance(value, dict)
]
_KIND_OF_HOOK = "_global_is_full_backward_hook"


def _hooks() -> list[Any]:
    return [*map(dict, _HOOKS), getattr(modules, _KIND_OF_HOOK)]


def _set_hooks(wanted: list[Any]) -> None:
    *hooks, kind = wanted
    for own, entries in zip(_HOOKS, hooks, strict=True):
        own.clear()
        own.update(entries)
    setattr(modules, _KIND_OF_HOOK, kind)


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
    (_cuda_device, lambda device: torch.cuda.set_device(device)),
    (
        lambda: torch.backends.cuda.preferred_blas_library(),
        lambda library: torch.backends.cuda.preferred_blas_library(library),
    ),
    (_hooks, _set_hooks),
    (np.geterr, lambda handling: np.seterr(**handling)),
    (lambda: list(warnings.filters), _set_filters),
    (os.getcwd, os.chdir),
]


class Apart:
    """Whose settings are in force: those of training, or between `enter` and `leave` a person's.

    What a person has begun may go on behind `leave`, so what is found then is not trusted:
    training's settings are those from before the first `enter`, and what operations made of them.
    """

    def __init__(self) -> None:
        self._training: list[Any] | None = None  # None: nobody has entered
        self._person: list[Any] | None = None
        self._modes: list[Any] = []

    def enter(self) -> None:
        if self._training is None:
            self._training = _read()
        if self._person is not None:
            _apply(self._person)
        torch.set_num_threads = _keep_threads

    def leave(self) -> None:
        self._person = _read()
        self._restore()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, an operation is done. It costs nothing where nobody has entered, and else much
        less than the operation."""
        if self._training is None:
            yield
            return
        torch.set_num_threads = _SET_NUM_THREADS
        self._restore()
        try:
            with _without_modes():
                yield
        finally:
            self._training = _read()
            torch.set_num_threads = _keep_threads

    def _restore(self) -> None:
        assert self._training is not None
        with suppress(Exception):
            torch.set_default_device(None)  # the CPU, named, is no other device but slower
        _apply(self._training)
        torch.set_flush_denormal(False)
        if torch.is_inference_mode_enabled():  # entered and not left
            self._modes.append(torch.inference_mode(False))
            self._modes[-1].__enter__()


@contextmanager
def _without_modes() -> Iterator[None]:
    """Inside, no mode that was entered and not left stands between torch's calls and what they do,
    such as `with torch.device(...)`."""
    with ExitStack() as later:
        while torch._C._len_torch_function_stack():
            later.callback(overrides._push_mode, overrides._pop_mode())
        while torch._C._len_torch_dispatch_stack():
            later.callback(dispatching._push_mode, dispatching._pop_mode())
        yield


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
    if _read() == wanted:  # as before almost every operation
        return
    for (read, write), value in zip(_SETTINGS, wanted, strict=True):
        if value is not None and _or_none(read) != value:
            with suppress(Exception):
                write(value)
