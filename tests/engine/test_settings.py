"""What a cell on the engine's kernel switches is its own, and nothing of it reaches training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.modules import module as modules
from torch.utils.flop_counter import FlopCounterMode

from jupyter_tinker.engine.settings import Apart

SWITCHES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "default dtype": (
        lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype
    ),
    "default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled
    ),
    "anomalies": (
        lambda: torch.set_anomaly_enabled(True, True), torch.is_anomaly_enabled
    ),
    "autocast": (
        lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")
    ),
    "flash attention": (
        lambda: torch.backends.cuda.enable_flash_sdp(False), torch.backends.cuda.flash_sdp_enabled
    ),
    "oneDNN": (
        lambda: setattr(torch.backends.mkldnn, "enabled", False),
        lambda: torch.backends.mkldnn.enabled,
    ),
    "CUDA device": (lambda: torch.cuda.set_device(1), lambda: torch.cuda.current_device()),
    "matrix library": (
        lambda: torch.backends.cuda.preferred_blas_library("cublaslt"),
        lambda: torch.backends.cuda.preferred_blas_library(),
    ),
    "hooks before all modules": (
        lambda: modules.register_module_forward_pre_hook(print),
        lambda: list(modules._global_forward_pre_hooks.values()),
    ),
    "hooks behind all modules": (
        lambda: modules.register_module_forward_hook(print, always_call=True),
        lambda: [list(modules._global_forward_hooks.values()),
                 list(modules._global_forward_hooks_always_called.values())],
    ),
    "hooks of all gradients": (
        lambda: modules.register_module_full_backward_hook(print),
        lambda: [list(modules._global_backward_hooks.values()),
                 modules._global_is_full_backward_hook],
    ),
    "hooks of all parameters": (
        lambda: modules.register_module_parameter_registration_hook(print),
        lambda: list(modules._global_parameter_registration_hooks.values()),
    ),
    "numpy errors": (lambda: np.seterr(all="raise"), lambda: tuple(np.geterr().items())),
    "warnings": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "folder": (lambda: os.chdir("/"), os.getcwd),
}  # fmt: skip


class Cuda:
    """What can be switched of CUDA, where there need be none."""

    def __init__(self) -> None:
        self.device, self.library = 0, "cublas"

    def set_device(self, device: int) -> None:
        self.device = device

    def preferred_blas_library(self, library: str | None = None) -> str:
        self.library = library or self.library
        return self.library


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Apart:
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cuda.device)
    monkeypatch.setattr(torch.cuda, "set_device", cuda.set_device)
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", cuda.preferred_blas_library)
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)  # is set back
    return Apart()


@pytest.mark.parametrize("name", list(SWITCHES))
@pytest.mark.filterwarnings("ignore")
def test_what_a_cell_switches_is_the_cells_own(name: str, apart: Apart) -> None:
    switch, read = SWITCHES[name]
    before = read()
    try:
        for _ in range(2):
            apart.enter()
            switch()
            switched = read()
            apart.leave()
            assert read() == before != switched
        apart.enter()
        assert read() == switched, "a person's settings hold from cell to cell"
    finally:
        apart.leave()
    assert read() == before


@pytest.mark.parametrize("name", list(SWITCHES))
@pytest.mark.filterwarnings("ignore")
def test_what_is_switched_behind_a_cell_reaches_no_operation(name: str, apart: Apart) -> None:
    switch, read = SWITCHES[name]
    before = read()
    apart.enter()
    apart.leave()
    try:
        switch()  # by a task that the cell has begun
        with apart.training():
            assert read() == before
        switch()
        apart.enter()  # and what is found then is not training's
        apart.leave()
        assert read() == before
    finally:
        with apart.training():
            pass


def test_what_an_operation_sets_stays(apart: Apart) -> None:
    before = np.geterr()
    apart.enter()
    apart.leave()
    try:
        with apart.training():
            np.seterr(under="raise")
        with apart.training():
            assert np.geterr()["under"] == "raise"
    finally:
        np.seterr(**before)


def test_a_cell_cannot_change_how_many_threads_compute(apart: Apart) -> None:
    before = torch.get_num_threads()
    apart.enter()
    for _ in range(2):  # in the cell, and by what goes on behind it
        with pytest.warns(UserWarning, match="set_num_threads does nothing"):
            torch.set_num_threads(before + 1)
        assert torch.get_num_threads() == before
        apart.leave()
    with apart.training():
        torch.set_num_threads(before + 1)
        assert torch.get_num_threads() == before + 1
        torch.set_num_threads(before)


def test_modes_that_were_entered_are_left(apart: Apart) -> None:
    apart.enter()
    mode = torch.inference_mode()
    mode.__enter__()
    torch.set_flush_denormal(True)
    torch.set_default_device("cpu")  # a mode in the way of every call
    apart.leave()
    assert not torch.is_inference_mode_enabled()
    assert float(torch.tensor([1e-40]) * 1) != 0
    assert torch._C._len_torch_function_stack() == 0
    apart._modes.pop().__exit__(None, None, None)
    mode.__exit__(None, None, None)


def test_modes_are_none_of_an_operation_and_still_the_persons(apart: Apart) -> None:
    apart.enter()
    apart.leave()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        with apart.training():
            assert torch.zeros(1).device.type == "cpu"
            _ = torch.ones(2, 2, device="cpu") @ torch.ones(2, 2, device="cpu")
        assert counter.get_total_flops() == 0
        assert torch.zeros(1).device.type == "meta"
    assert torch.zeros(1).device.type == "cpu"
