"""Folders that are whole or not there: each is made under a temporary name beside its place.

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
# Nobody fills one folder for so long; what is older is stale wherever its maker ran.
_LONGEST_WORK = 86_400.0


def fresh_folder(folder: Path) -> Path:
    """A new, empty folder to fill and then rename to `folder`, whose parent is made if need be."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.{_place()}-{os.getpid()}-"
    fresh = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=folder.parent))
    fresh.chmod(0o755)  # mkdtemp's folders are for nobody else to read
    return fresh


def clear(folder: Path) -> None:
    """Remove what writers that died left of `folder`, to which nobody writes now."""
    unfinished = re.compile(rf"\.{re.escape(folder.name)}\.[^.]+\.tmp")
    for path in folder.parent.iterdir():
        if unfinished.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Let the disk have a file, or the names in a folder."""
    if os.name == "nt":  # which syncs neither folders nor what is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(directory: Path, pattern: str) -> list[Path]:
    """Remove the temporary folders under `directory` that nobody fills any more; returns them."""
    stale = [folder for folder in directory.glob(f"{pattern}/.*.tmp") if _stale(folder)]
    for folder in stale:
        shutil.rmtree(folder, ignore_errors=True)
    return stale


def _stale(folder: Path) -> bool:
    made_by = _MADE_BY.fullmatch(folder.name)
    if made_by is not None and made_by[1] == _place():
        return not psutil.pid_exists(int(made_by[2]))
    try:
        return folder.stat().st_mtime < time.time() - _LONGEST_WORK
    except OSError:
        return False


def _place() -> str:
    """Where a process id means what it means here: this machine, or this container of it."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:12]
