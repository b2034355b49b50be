"""Snapshots: a run's whole state in one safetensors file, from which it goes on to the last bit.

    weights, mean, square    flat float32, in the adapter's own order
    count                    of the optimizer's steps, as its kernel takes it
    gradients                only where some are accumulated

and in the header's metadata, under "snapshot", the format's number, the shape of the adapter, the
step, and the base model's fingerprint. Unlike a checkpoint it is for this engine alone. Knows
nothing of when a snapshot is taken, or of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..wire import staging
from ..wire.ops import LoraSpec, OpError
from .adapter import parameter_shapes, targets
from .base_model import BaseModel
from .run import Run

FORMAT = 1
_ABOUT = "snapshot"
_GRADIENTS = "gradients"
# Bytes to hash and write at once: large, because between any two this thread asks for the
# interpreter's lock, which the engine then has to give up; and small enough to stay in the cache.
_CHUNK = 4 << 20

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Copy:
    """A run's state in CPU memory, laid out as in the file."""

    header: bytes
    data: torch.Tensor  # (S,) float32: all tensors in a row
    tensors: Tensors  # views of it
    buffer: torch.Tensor  # what `data` is the beginning of, to be used again
    step: int


@dataclass(frozen=True)
class State:
    """A snapshot that was read and found to fit its base model."""

    lora: LoraSpec
    step: int
    tensors: Tensors


def copy(run: Run, buffer: torch.Tensor | None = None) -> Copy:
    """The run's state as it is now, in `buffer` if that is large enough.

    Memory that was used before takes a tenth of the time: the system need not find it first.
    """
    tensors = _tensors(run)
    sizes = [tensor.numel() for tensor in tensors.values()]
    if buffer is None or buffer.numel() < sum(sizes):
        # With room for gradients, so that it does for any later copy of the run.
        buffer = torch.empty(4 * run.adapter.weights.numel() + 1)
    data = buffer[: sum(sizes)]
    copies = {}
    for (name, tensor), part in zip(tensors.items(), data.split(sizes), strict=True):
        copies[name] = part.view(tensor.shape).copy_(tensor)
    return Copy(_header(run, tensors), data, copies, buffer, run.step)


def write(taken: Copy, file: Path) -> tuple[int, str]:
    """Write a copy to `file`, whole or not at all; its size in bytes and its SHA-256."""
    try:
        staging.make_folder(file.parent)
        staging.sweep(file.parent)
        fresh = staging.fresh_file(file)
        try:
            size, digest = _fill_file(fresh, taken)
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
        staging.sync(file.parent)
    except OSError as error:
        raise OpError(
            f"the snapshot could not be written to {file}: {error.strerror or error}; "
            f"{staging.free_space(file)}, and the run goes on as it was",
            "server",
        ) from None
    return size, digest


def verify(file: Path, sha256: str) -> None:
    """Raises `OpError` unless `file` is what was written."""
    try:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        raise OpError(f"there is no snapshot at {file}", "server") from None
    except OSError as error:
        reason = error.strerror or error
        raise OpError(f"the snapshot {file} could not be read: {reason}", "server") from None
    if found != sha256:
        raise _damaged(file, "its SHA-256 is not that of what was written")


def read(file: Path, base: BaseModel) -> State:
    """The snapshot in `file`, whose header is checked against `base` before a tensor is read."""
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads(opened.metadata()[_ABOUT])
            _check_origin(file, about, base)
            lora = LoraSpec(**about["lora"])
            _check_sizes(file, opened, _size(base, lora))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return State(lora, int(about["step"]), tensors)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise _damaged(file, str(error)[:300]) from None


def fill(run: Run, state: State) -> None:
    """Put a state into a run of its shape; if that is interrupted, the run is as it was."""
    before = copy(run)
    try:
        _put(run, state.tensors, state.step)
    except BaseException:
        _put(run, before.tensors, before.step)
        raise


def _tensors(run: Run) -> Tensors:
    optimizer = run.optimizer
    tensors = {
        "weights": run.adapter.weights,
        "mean": optimizer.mean,
        "square": optimizer.square,
        "count": optimizer.count,
    }
    return {**tensors, _GRADIENTS: run.adapter.gradients} if run.has_gradients else tensors


def _put(run: Run, tensors: Tensors, step: int) -> None:
    run.step = step
    run.has_gradients = _GRADIENTS in tensors
    if not run.has_gradients:
        run.adapter.gradients.zero_()
    for name, own in _tensors(run).items():
        own.copy_(tensors[name])


def _header(run: Run, tensors: Tensors) -> bytes:
    """As of safetensors: its length in 8 bytes, JSON, and blanks up to a multiple of 8."""
    about = {
        "format": FORMAT,
        "base_model": run.base.name,
        "base": run.base.fingerprint,
        "lora": asdict(run.lora),
        "step": run.step,
    }
    entries: dict[str, Any] = {"__metadata__": {_ABOUT: json.dumps(about)}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        shape = list(tensor.shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _fill_file(file: Path, taken: Copy) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with file.open("wb") as opened:
        for chunk in _chunks(taken):
            digest.update(chunk)
            size += opened.write(chunk)
        opened.flush()
        os.fsync(opened.fileno())
    return size, digest.hexdigest()


def _chunks(taken: Copy) -> Iterator[bytes | memoryview]:
    yield taken.header
    data = memoryview(taken.data.numpy().astype("<f4", copy=False)).cast("B")
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]


def _check_origin(file: Path, about: dict[str, Any], base: BaseModel) -> None:
    if about["format"] != FORMAT:
        raise OpError(
            f"the snapshot {file.name} has format {about['format']} and this engine reads "
            f"{FORMAT}; use the version of jupyter_tinker that wrote it",
            "server",
        )
    if about["base"] != base.fingerprint:
        raise OpError(
            f"the snapshot {file.name} was taken on {about['base_model']!r}, whose configuration "
            f"differs from that of {base.name!r}; put the base model back that it was taken on",
            "server",
        )


def _check_sizes(file: Path, opened: Any, size: int) -> None:
    names = set(opened.keys())
    expected: dict[str, list[int]] = {"weights": [size], "mean": [size], "square": [size]}
    expected["count"] = []
    if _GRADIENTS in names:
        expected[_GRADIENTS] = [size]
    slices = {name: opened.get_slice(name) for name in names}
    found = {name: part.get_shape() for name, part in slices.items()}
    if found != expected or any(part.get_dtype() != "F32" for part in slices.values()):
        raise _damaged(file, "its tensors are not those of its run")


def _size(base: BaseModel, lora: LoraSpec) -> int:
    """How many parameters an adapter has."""
    try:
        shapes = parameter_shapes(targets(base, lora), lora.rank)
    except OpError as error:
        raise ValueError(error.message) from None
    return sum(math.prod(shape) for shape in shapes.values())


def _damaged(file: Path, why: str) -> OpError:
    return OpError(f"the snapshot {file} is damaged: {why}", "server")
