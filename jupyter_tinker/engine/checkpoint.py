"""Checkpoints: folders in PEFT's layout, with the optimizer beside the adapter where it is wanted.

    adapter_model.safetensors, adapter_config.json    what PEFT itself writes and loads
    optimizer.safetensors                             moments by parameter name, and the step count
    jupyter_tinker.json                               the run's shape and a fingerprint of its base

A folder is whole or not there: it is written beside its place and renamed. Encrypted files are so
before they touch the disk, and their names end in `.age`. Knows nothing of runs' lives or the
server's names for checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from safetensors.torch import save as tensor_bytes

from ..wire import staging
from ..wire.ops import CheckpointKind, LoraSpec, OpError, SaveInfo
from . import encryption
from .adamw import AdamW
from .adapter import parameter_shapes, targets
from .base_model import BaseModel
from .run import Run
from .wrappers import peft_config

FORMAT = 1
ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
ABOUT_FILE = "jupyter_tinker.json"

_PREFIX = "base_model.model."  # PEFT's, before every module path
_COUNT = "step"
_MEAN = "exp_avg."
_SQUARE = "exp_avg_sq."

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and found whole, and made on the base model it is for."""

    lora: LoraSpec
    step: int
    weights: Tensors
    optimizer: Tensors | None


def save(
    run: Run,
    kind: CheckpointKind,
    folder: Path,
    base_model_name: str,
    recipients: Sequence[Any] | None = None,
) -> SaveInfo:
    """Write the run to `folder`, replacing what is there; encrypted to `recipients` if there are
    some (of `encryption.recipients`)."""
    try:
        staging.make_folder(folder.parent)
        _restore_interrupted(folder)
        staging.clear(folder)
        fresh = staging.fresh_folder(folder)
        try:
            _write(run, kind, fresh, base_model_name, recipients)
            size = sum(file.stat().st_size for file in fresh.iterdir())
            _replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OpError(
            f"the checkpoint could not be written to {folder}: {reason}; "
            f"{staging.free_space(folder)}, and what was there before is untouched",
            "server",
        ) from error
    return SaveInfo(size_bytes=size, step=run.step)


def read(folder: Path, base: BaseModel, *, optimizer: bool, repair: bool = True) -> Checkpoint:
    """The checkpoint in `folder`, checked against `base`. Raises `OpError`.

    `repair` undoes a replacement that was cut short; only the process that writes checkpoints may,
    because to another one a replacement on its way looks the same.
    """
    if repair:
        _restore_interrupted(folder)
    about = _about(folder)
    if about["base"] != base.fingerprint:
        raise OpError(
            f"the checkpoint {folder.name} was trained on {about['base_model']!r}, whose "
            f"configuration differs from that of {base.name!r}; load it on its own base model"
        )
    lora = about["lora"]
    shapes = parameter_shapes(targets(base, lora), lora.rank)
    weights = _tensors(folder / ADAPTER_FILE, {_PREFIX + key: shapes[key] for key in shapes})
    state = None
    if optimizer:
        if not (folder / OPTIMIZER_FILE).is_file():
            raise OpError(
                f"the checkpoint {folder.name} holds no optimizer state; load it without, or load "
                f"one made by save_state"
            )
        expected: dict[str, tuple[int, ...]] = {_COUNT: ()}
        expected |= {prefix + key: shapes[key] for key in shapes for prefix in (_MEAN, _SQUARE)}
        state = _tensors(folder / OPTIMIZER_FILE, expected)
    bare = {key.removeprefix(_PREFIX): tensor for key, tensor in weights.items()}
    return Checkpoint(lora, about["step"], bare, state)


def check_shape(checkpoint: Checkpoint, run: Run) -> None:
    """Raises `OpError` unless the checkpoint can be put into the run."""
    saved, own = _shape(checkpoint.lora), _shape(run.lora)
    if saved != own:
        raise OpError(f"the checkpoint has {saved} and the run {own}; load it as a new run instead")


def restore(run: Run, checkpoint: Checkpoint) -> None:
    """Put a checkpoint of the run's own shape into it. Without optimizer state the optimizer starts
    anew, and with it the count of its steps."""
    # All memory, before anything is changed: it may run out.
    optimizer, state, step = AdamW(run.adapter.weights), checkpoint.optimizer, 0
    if state is not None:
        step = checkpoint.step
        keys = list(run.adapter.views)
        optimizer.count.copy_(state[_COUNT])
        optimizer.mean.copy_(torch.cat([state[_MEAN + key].flatten() for key in keys]))
        optimizer.square.copy_(torch.cat([state[_SQUARE + key].flatten() for key in keys]))
    run.adapter.fill(checkpoint.weights)
    run.optimizer, run.step = optimizer, step
    run.zero_grad()


def _shape(lora: LoraSpec) -> str:
    parts = [part for part in ("attn", "mlp", "unembed") if getattr(lora, f"train_{part}")]
    return f"rank {lora.rank}, alpha {lora.alpha:g}, trained {'+'.join(parts)}"


def _write(
    run: Run,
    kind: CheckpointKind,
    folder: Path,
    base_model_name: str,
    recipients: Sequence[Any] | None,
) -> None:
    adapter = run.adapter
    weights = {_PREFIX + key: view for key, view in adapter.views.items()}
    _save_tensors(weights, folder / ADAPTER_FILE, recipients)
    config = peft_config(adapter.targets, adapter.spec)
    config.base_model_name_or_path = base_model_name
    config.inference_mode = True
    _save_json(config.to_dict(), folder / CONFIG_FILE, recipients)
    if kind == "weights":
        _save_tensors(_optimizer_tensors(run), folder / OPTIMIZER_FILE, recipients)
    about = {
        "format": FORMAT,
        "base_model": base_model_name,
        "base": run.base.fingerprint,
        "lora": asdict(run.lora),
        "step": run.step,
        # For people and other programs: whoever merges this must first part output and embedding.
        "merging_unties": run.base.is_tied and run.lora.train_unembed,
    }
    _save_json(about, folder / ABOUT_FILE, recipients)
    for file in folder.iterdir():
        staging.sync(file)
    staging.sync(folder)


def _optimizer_tensors(run: Run) -> Tensors:
    optimizer, views = run.optimizer, run.adapter.views
    sizes = [view.numel() for view in views.values()]
    tensors = {_COUNT: optimizer.count}
    for prefix, flat in ((_MEAN, optimizer.mean), (_SQUARE, optimizer.square)):
        for (key, view), part in zip(views.items(), flat.split(sizes), strict=True):
            tensors[prefix + key] = part.view(view.shape)
    return tensors


def _save_tensors(
    tensors: Mapping[str, torch.Tensor], file: Path, recipients: Sequence[Any] | None
) -> None:
    # Clones: safetensors takes views of one buffer for parameters that share memory.
    plain = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
    metadata = {"format": "pt"}
    if recipients:
        _save_bytes(tensor_bytes(plain, metadata), file, recipients)
    else:
        save_file(plain, file, metadata)


def _save_json(value: dict[str, Any], file: Path, recipients: Sequence[Any] | None) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, default=sorted)  # PEFT's configs hold sets
    _save_bytes(f"{text}\n".encode(), file, recipients)


def _save_bytes(data: bytes, file: Path, recipients: Sequence[Any] | None) -> None:
    if recipients:
        file = file.with_name(file.name + encryption.SUFFIX)
        data = encryption.encrypt(data, recipients)
    file.write_bytes(data)


def _replace(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; at every moment one of the two is whole on the disk."""
    old = _aside(folder)
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        _restore_interrupted(folder)
        raise
    staging.sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _restore_interrupted(folder: Path) -> None:
    """Undo a replacement that the machine died in, and clear away what one left behind."""
    old = _aside(folder)
    if not old.exists():
        return
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _about(folder: Path) -> dict[str, Any]:
    file = folder / ABOUT_FILE
    try:
        about = json.loads(file.read_text())
        if about["format"] != FORMAT:
            raise OpError(
                f"the checkpoint {folder.name} has format {about['format']} and this engine reads "
                f"{FORMAT}; use the version of jupyter_tinker that wrote it"
            )
        return {
            "base_model": str(about["base_model"]),
            "base": dict(about["base"]),
            "lora": LoraSpec(**about["lora"]),
            "step": int(about["step"]),
        }
    except FileNotFoundError:
        if file.with_name(file.name + encryption.SUFFIX).exists():
            raise OpError(
                f"the checkpoint {folder.name} is encrypted and only its recipients can read it; "
                f"load the checkpoint that it was exported from"
            ) from None
        raise OpError(f"there is no checkpoint at {folder}: {ABOUT_FILE} is missing") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise OpError(
            f"the checkpoint {folder.name} is damaged: {ABOUT_FILE} is unreadable"
        ) from None


def _tensors(file: Path, expected: Mapping[str, tuple[int, ...]]) -> Tensors:
    where = f"the checkpoint {file.parent.name} is damaged: {file.name}"
    try:
        tensors = load_file(file)
    except FileNotFoundError:
        raise OpError(f"{where} is missing") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise OpError(f"{where} is unreadable ({error})") from None
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if shapes != dict(expected):
        odd = sorted(set(shapes.items()) ^ set(expected.items()))
        raise OpError(f"{where} does not hold what its run had, for instance {odd[0][0]}")
    return tensors
