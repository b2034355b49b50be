"""Takes a checkpoint out of the state directory: as it is, merged into its base model, or as GGUF.

Needs no running server: it reads the database and the checkpoint's files, and changes neither. What
is written is there whole or not at all: it is made beside its place and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..wire import staging
from ..wire.ops import OpError
from . import child
from .catalog import Catalog, UnknownModelError
from .checkpoints import Checkpoints, UnknownCheckpoint, parse_path, path_of
from .hub import Progress
from .run_store import RunStore
from .schema import CheckpointRow

Form = Literal["adapter", "merged", "gguf"]

_ADAPTER = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_ABOUT = "jupyter_tinker.json"
_OPTIMIZER = "optimizer.safetensors"  # of no use but to go on training here
_FOLDER_MARKS = (_ADAPTER_CONFIG, "config.json")


class ExportError(RuntimeError):
    """A checkpoint could not be exported, and nothing was written; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine, and the base model that it belongs to."""

    path: str  # tinker://...
    folder: Path
    base_model: str
    base_path: Path


async def find(text: str, checkpoints: Checkpoints, runs: RunStore) -> CheckpointRow:
    """The checkpoint of a `tinker://` path, or a run's newest. Raises `ExportError`."""
    if "//" in text:
        try:
            return await checkpoints.get(parse_path(text))
        except (OpError, UnknownCheckpoint) as error:
            raise ExportError(f"{error} `tinker checkpoint list` shows what there is.") from error
    rows, _ = await checkpoints.list(run_id=text, limit=1)
    if rows:
        return rows[0]
    if await runs.run(text) is None:
        raise ExportError(f"There is no run {text!r}; `jupyter tinker runs` lists them.")
    raise ExportError(f"The run {text} has no checkpoint; its client can make one with save_state.")


def source(row: CheckpointRow, checkpoints: Checkpoints, catalog: Catalog, *, base: bool) -> Source:
    """Where the checkpoint's files are, and, if `base` is wanted, its base model's.

    A base model that has moved since is looked for by its name. Raises `ExportError`.
    """
    path = path_of(row)
    folder = checkpoints.folder(path)
    _check_files(folder, str(path))
    base_path = Path(row.base_path)
    if base and not (base_path / "config.json").is_file():
        try:
            base_path = catalog.resolve(row.base_model, allow_path=True).path
        except UnknownModelError as error:
            raise ExportError(
                f"The base model of {path}, {row.base_model!r}, is not at {base_path} any more. "
                f"{error}"
            ) from error
    return Source(str(path), folder, row.base_model, base_path)


def warning(source: Source) -> str | None:
    """What whoever uses the adapter alone should know of it."""
    try:
        about = json.loads((source.folder / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not (isinstance(about, dict) and about.get("merging_unties")):
        return None
    return (
        "This adapter trains the output layer of a model whose output layer is its embedding. "
        "Beside its base model it works as it is; to merge it, use --merged: merge_and_unload of "
        'PEFT and merge_strategy="full" of the cookbook would change the embedding too.'
    )


def export(
    source: Source,
    out: Path,
    form: Form,
    *,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the checkpoint to `out`: a folder, or for "gguf" a file. Raises `ExportError`.

    `dtype` None keeps the base model's own. `force` replaces what an earlier export left at `out`.
    """
    report = progress or (lambda text, fraction: None)
    out = Path(os.path.abspath(out.expanduser()))
    _check_target(out, source, form, force)
    if form == "adapter":
        _place(out, lambda fresh: _copy(source.folder, fresh))
    else:
        _place(out, lambda fresh: _run_engine(source, fresh, form, dtype, report))
    report(f"{out.name} is written", 1.0)


def _check_files(folder: Path, path: str) -> None:
    from safetensors import SafetensorError, safe_open  # with numpy, which a server start spares

    try:
        json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / _ADAPTER, framework="np"):
            pass  # it has compared the header with the file's length
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else _ADAPTER
        raise ExportError(
            f"The checkpoint {path} is damaged: {missing} is missing from {folder}."
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ExportError(
            f"The checkpoint {path} is damaged: {folder} cannot be read ({error})."
        ) from error


def _check_target(out: Path, source: Source, form: Form, force: bool) -> None:
    real = out.resolve()
    for what, kept in (("checkpoint", source.folder), ("base model", source.base_path)):
        kept = kept.resolve()
        if real == kept or real in kept.parents or kept in real.parents:
            raise ExportError(f"{out} is where the {what} itself lies; choose another place.")
    if not os.path.lexists(out):
        return
    if not force:
        raise ExportError(f"{out} exists; choose another name, or replace it with --force.")
    if not _is_export(out, form):
        raise ExportError(
            f"{out} is not what an export of this kind left, so --force does not replace it; "
            "choose another name."
        )


def _is_export(out: Path, form: Form) -> bool:
    if form != "gguf":
        return out.is_dir() and any((out / mark).is_file() for mark in _FOLDER_MARKS)
    if not out.is_file():
        return False
    with out.open("rb") as file:
        return file.read(4) == b"GGUF"


def _place(out: Path, make: Callable[[Path], None]) -> None:
    """Let `make` write a file or folder, then make it `out`, in one step."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _room_beside(out) as room:
            fresh, old = room / "new", room / "old"
            make(fresh)
            _sync(fresh)
            if out.is_dir():
                out.rename(old)
            try:
                fresh.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise
    except OSError as error:
        raise ExportError(f"{out} could not be written: {error.strerror or error}.") from error


@contextmanager
def _room_beside(out: Path) -> Iterator[Path]:
    room = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _copy(folder: Path, fresh: Path) -> None:
    fresh.mkdir()
    for file in folder.iterdir():
        if file.name != _OPTIMIZER:
            shutil.copyfile(file, fresh / file.name)


def _run_engine(
    source: Source, fresh: Path, form: Form, dtype: str | None, report: Progress
) -> None:
    command = [sys.executable, "-m", "jupyter_tinker.engine.export", form, str(source.folder)]
    command += [source.base_model, str(source.base_path), str(fresh)]
    command += ["--dtype", dtype] if dtype else []

    def stage(line: str) -> None:
        fraction, _, text = line.strip().partition(" ")
        report(text, float(fraction))

    report("Starting torch", 0.0)
    try:
        child.run(command, stage)
    except child.ChildError as error:
        raise ExportError(f"{source.path} could not be exported: {error.last_words(1)}.") from error


def _sync(path: Path) -> None:
    """Let the disk have what was written before a rename says that it is there."""
    for each in [*(path.iterdir() if path.is_dir() else ()), path]:
        staging.sync(each)
