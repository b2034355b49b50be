"""Where and in what precision the engine computes, chosen from the options and the machine.

`choose` is a pure function; `Machine.detect` looks at the hardware. Knows nothing of models.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

import torch

from ..wire.ops import EngineOptions, OpError
from . import container, products

# Of processors that multiply bfloat16 themselves, at twice the rate of float32 and more.
_CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Machine:
    """What this machine has that matters to the choice."""

    cpu_bfloat16: bool = False
    cuda_devices: int = 0
    cuda_bfloat16: bool = False
    mps: bool = False
    flash_attention: bool = False

    @classmethod
    def detect(cls) -> Machine:
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            cpu_bfloat16=_cpu_multiplies_bfloat16(),
            cuda_devices=cuda,
            cuda_bfloat16=cuda > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
            mps=torch.backends.mps.is_available(),
            flash_attention=importlib.util.find_spec("flash_attn") is not None,
        )


@dataclass(frozen=True)
class Placement:
    """The choice, and the reason in words."""

    device: str
    dtype: str
    attention: str
    reason: str
    as_stored: bool = False  # whether models that are stored in bfloat16 are computed in it

    def of_model(self, stored: str) -> Placement:
        """For a model that is stored in this type."""
        if self.as_stored and stored == "bfloat16":
            return replace(self, dtype=stored)
        return self

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]


def choose(options: EngineOptions, machine: Machine) -> Placement:
    """Device, dtype and attention kernel: as asked for, or the best the machine has."""
    device, why_device = _device(options.device, machine)
    dtype, why_dtype = _dtype(options.dtype, device, machine)
    attention, why_attention = _attention(options.attention, device, dtype, machine)
    as_stored = options.dtype == "auto" and device.startswith("cpu") and machine.cpu_bfloat16
    if as_stored:
        why_dtype += ", and bfloat16 for models stored in it, which is faster here"
    reason = f"{device} {why_device}; {dtype} {why_dtype}; {attention} attention {why_attention}"
    return Placement(device, dtype, attention, reason, as_stored)


def num_threads(options: EngineOptions) -> int | None:
    """CPU threads to compute with; None where PyTorch's own choice is right, which counts all the
    processors of a machine, also those that a container may not use."""
    granted = container.cpus()
    fewer = granted is not None and granted < torch.get_num_threads()
    return options.num_threads or (granted if fewer else None)


def _device(asked: str, machine: Machine) -> tuple[str, str]:
    if asked == "auto":
        if machine.cuda_devices:
            return "cuda", "because torch sees a CUDA GPU"
        return "cpu", "because torch sees no CUDA GPU"
    kind, _, number = asked.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        raise OpError(f"there is no device {asked!r}; choose auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda" and int(number or 0) >= machine.cuda_devices:
        raise OpError(f"torch sees {machine.cuda_devices} CUDA GPUs, so not {asked!r}; try auto")
    if kind == "mps" and not machine.mps:
        raise OpError("torch sees no Apple GPU on this machine; choose device auto or cpu")
    return asked, "as asked for"


def _dtype(asked: str, device: str, machine: Machine) -> tuple[str, str]:
    if asked in ("float32", "bfloat16"):
        return asked, "as asked for"
    if asked != "auto":
        raise OpError(f"there is no dtype {asked!r}; choose auto, float32 or bfloat16")
    if not device.startswith("cuda"):
        return "float32", "because that is exact"
    if not machine.cuda_bfloat16:
        return "float32", "because this GPU has no bfloat16"
    return "bfloat16", "because this GPU has it"


def _cpu_multiplies_bfloat16() -> bool:
    # Older torch has none.
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    has = any(known.get(name) for name in _CPU_BFLOAT16)
    return has and products.onednn_multiplies(torch.bfloat16)


def _attention(asked: str, device: str, dtype: str, machine: Machine) -> tuple[str, str]:
    usable = machine.flash_attention and device.startswith("cuda") and dtype == "bfloat16"
    if asked == "auto":
        if usable:
            return "flash_attention_2", "because flash-attn is installed"
        return "sdpa", "because that needs no package besides torch"
    if asked not in ("sdpa", "eager", "flash_attention_2"):
        raise OpError(
            f"there is no attention {asked!r}; choose auto, sdpa, eager, flash_attention_2"
        )
    if asked == "flash_attention_2" and not usable:
        raise OpError("flash_attention_2 needs the flash-attn package, a CUDA GPU and bfloat16")
    return asked, "as asked for"
