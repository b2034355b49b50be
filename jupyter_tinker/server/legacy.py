"""What earlier releases of the SDK need that the present one does not. Knows nothing of HTTP.

Release 0.25 was the first to send and read the binary bodies of today. Those before 0.28 know no
external weights, and those before 0.36 download a checkpoint as one tar archive.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..wire import tinker
from ..wire.ops import CheckpointKind

OLDEST = (0, 25)
_FIRST_WITH_EXTERNAL_WEIGHTS = (0, 28)
_NOT_IN_ARCHIVES = "optimizer.safetensors"  # of no use to who loads an adapter, and twice its size
_COMPLETE = "checkpoint_complete"  # an empty file that old releases look for
_CHUNK = 2**20


def check_version(version: str) -> None:
    """Raises `BadRequest` for a release of the SDK that this server cannot serve."""
    release = _release(version)
    if release is not None and release < OLDEST:
        raise tinker.BadRequest(
            f"Release {version} of the tinker SDK sends training data in a form that this server "
            f"does not read; install {OLDEST[0]}.{OLDEST[1]} or later (pip install -U tinker)."
        )


def listed_kinds(version: str) -> tuple[CheckpointKind, ...]:
    """The kinds of checkpoints that a release knows, and may be shown."""
    release = _release(version)
    old = release is not None and release < _FIRST_WITH_EXTERNAL_WEIGHTS
    known: tuple[CheckpointKind, ...] = ("weights", "sampler_weights")
    return known if old else (*known, "external_weights")


def _release(version: str) -> tuple[int, int] | None:
    """Major and minor number; None for what is no release."""
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


@dataclass(frozen=True)
class Archive:
    """An uncompressed tar of a checkpoint's files."""

    folder: Path
    members: dict[str, int]  # sizes by name

    @classmethod
    def of(cls, folder: Path) -> Archive:
        """Blocking. Raises `FileNotFoundError`."""
        files = sorted(file for file in folder.iterdir() if file.name != _NOT_IN_ARCHIVES)
        return cls(folder, {file.name: file.stat().st_size for file in files} | {_COMPLETE: 0})

    @property
    def size(self) -> int:
        blocks = sum(1 + -(-size // tarfile.BLOCKSIZE) for size in self.members.values())
        return (blocks + 2) * tarfile.BLOCKSIZE

    def chunks(self) -> Iterator[bytes]:
        """Blocking."""
        for name, size in self.members.items():
            member = tarfile.TarInfo(name)
            member.size = size
            yield member.tobuf(tarfile.USTAR_FORMAT)
            if size:
                with (self.folder / name).open("rb") as file:
                    while chunk := file.read(_CHUNK):
                        yield chunk
                yield b"\0" * (-size % tarfile.BLOCKSIZE)
        yield b"\0" * (2 * tarfile.BLOCKSIZE)
