"""Folders and files that are whole or not there: each is made under a temporary name beside its
place, and renamed.

The name says which process makes it, so that what a killed one left can be told from another's work
in progress: several servers may share a directory.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

_MADE_BY = re.compile(r"\..+\.([0-9a-f]{12})-(\d+)-[^.]*\.tmp")
# Nobody works on one of them for so long; what is older is stale wherever its maker ran.
_LONGEST_WORK = 86_400.0


def fresh_folder(folder: Path) -> Path:
    """A new, empty folder to fill and then rename to `folder`, whose parent is made if need be."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=_prefix(folder), suffix=".tmp", dir=folder.parent))
    fresh.chmod(0o755)  # mkdtemp's folders are for nobody else to read
    return fresh


def fresh_file(file: Path) -> Path:
    """A new, empty file, for its owner alone, to write and then rename to `file`."""
    descriptor, name = tempfile.mkstemp(prefix=_prefix(file), suffix=".tmp", dir=file.parent)
    os.close(descriptor)
    return Path(name)


def make_folder(folder: Path) -> None:
    """A folder that is there after a power cut too: each new name is on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def clear(folder: Path) -> None:
    """Remove what writers that died left of `folder`, to which nobody writes now."""
    unfinished = re.compile(rf"\.{re.escape(folder.name)}\.[^.]+\.tmp")
    for path in folder.parent.iterdir():
        if unfinished.fullmatch(path.name):
            _remove(path)


def sync(path: Path) -> None:
    """Let the disk have a file, or the names in a folder."""
    if os.name == "nt":  # which syncs neither folders nor what is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(directory: Path, pattern: str = ".") -> list[Path]:
    """Remove what nobody fills any more of the temporary folders and files in `directory`, or in
    those below it that `pattern` matches; returns them."""
    stale = [path for path in directory.glob(f"{pattern}/.*.tmp") if _stale(path)]
    for path in stale:
        _remove(path)
    return stale


def free_space(path: Path) -> str:
    """How much room is left where `path` is, as a part of a sentence."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return "the disk there cannot be examined"
    return f"the disk there has {free / 2**20:.0f} MiB free"


def _prefix(path: Path) -> str:
    return f".{path.name}.{_place()}-{os.getpid()}-"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _stale(path: Path) -> bool:
    made_by = _MADE_BY.fullmatch(path.name)
    if made_by is not None and made_by[1] == _place():
        return not psutil.pid_exists(int(made_by[2]))
    try:
        return path.stat().st_mtime < time.time() - _LONGEST_WORK
    except OSError:
        return False


def _place() -> str:
    """Where a process id means what it means here: this machine, or this container of it."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:12]
