"""Saved adapters: their names and `tinker://` paths, where their files lie, and how long they live.

The engine writes and reads the files; this module decides where, and never trusts a name.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from weakref import WeakValueDictionary

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from ..wire import staging
from ..wire.ops import CheckpointKind, OpError
from .audit import THE_SERVER, note
from .database import Database
from .schema import CheckpointRow

_SCHEME = "tinker://"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]{0,127}")
_KINDS: tuple[CheckpointKind, ...] = get_args(CheckpointKind)


class UnknownCheckpoint(LookupError):
    """There is no such checkpoint; the message names it."""


@dataclass(frozen=True)
class CheckpointPath:
    """`tinker://RUN/KIND/NAME`."""

    run_id: str
    kind: CheckpointKind
    name: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.run_id}/{self.kind}/{self.name}"


def parse_path(text: str) -> CheckpointPath:
    """Read a `tinker://` path. Raises `OpError` saying what is wrong with it."""
    parts = text.removeprefix(_SCHEME).split("/")
    if not text.startswith(_SCHEME) or len(parts) != 3 or parts[1] not in _KINDS:
        raise OpError(
            f"{text[:200]!r} is no checkpoint path; one looks like tinker://RUN/weights/NAME, "
            f"with {', '.join(_KINDS)} in the middle."
        )
    run_id, kind, name = parts
    return CheckpointPath(run_id, next(k for k in _KINDS if k == kind), name)


def check_name(name: str) -> str:
    """A checkpoint's name as a file may be called. Raises `OpError`."""
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 60 else name[:57] + "..."
        raise OpError(
            f"{shown!r} cannot name a checkpoint: use 1 to 128 letters, digits and . _ - + = , "
            "beginning with a letter, digit or _."
        )
    return name


class Checkpoints:
    """The checkpoints of one database and the directory beside it."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._db = database
        self._directory = directory
        self._locks: WeakValueDictionary[CheckpointPath, asyncio.Lock] = WeakValueDictionary()

    def sweep(self) -> None:
        """Remove what writers that were killed left half written. Blocking."""
        staging.sweep(self._directory, "*/*")

    def lock(self, path: CheckpointPath) -> asyncio.Lock:
        """To be held while a checkpoint's folder and row change together, or its files are read."""
        return self._locks.setdefault(path, asyncio.Lock())

    def folder(self, path: CheckpointPath) -> Path:
        """Where the files of a checkpoint lie, or will lie."""
        return self._directory / self._relative(path)

    def _relative(self, path: CheckpointPath) -> str:
        # Run ids are ours: hexadecimal digits, dashes and colons, which Windows does not allow.
        return f"{path.run_id.replace(':', '_')}/{path.kind}/{path.name}"

    async def add(
        self,
        path: CheckpointPath,
        *,
        by: str = THE_SERVER,
        record: Callable[[Session], object] = lambda db: None,
        **values: Any,
    ) -> CheckpointRow:
        """Store the row of a checkpoint that is written, in place of one of the same name.

        `by` is who asked for it; `record` says more of it in the same transaction.
        """
        relative = self._relative(path)

        def work(db: Session) -> CheckpointRow:
            row = db.scalars(_one(path)).first()
            if row is None:
                row = CheckpointRow(run_id=path.run_id, kind=path.kind, name=path.name)
                db.add(row)
            row.folder, row.created_at, row.public = relative, time.time(), False
            for name, value in values.items():
                setattr(row, name, value)
            note(db, "checkpoint_saved", by, tinker_path=str(path), size_bytes=row.size_bytes)
            record(db)
            return row

        return await self._db.call(work)

    async def get(self, path: CheckpointPath) -> CheckpointRow:
        """Raises `UnknownCheckpoint`."""
        row = await self.find(path)
        if row is None:
            raise UnknownCheckpoint(f"There is no checkpoint {path}.")
        return row

    async def find(self, path: CheckpointPath) -> CheckpointRow | None:
        """A checkpoint, if there is one."""
        row: CheckpointRow | None
        row = await self._db.call(lambda db: db.scalars(_one(path)).first())
        return None if row is None or _expired(row) else row

    async def exists(self, path: CheckpointPath) -> bool:
        return await self.find(path) is not None

    async def list(
        self,
        *,
        run_id: str | None = None,
        kinds: Sequence[CheckpointKind] = _KINDS,
        limit: int | None = None,
        offset: int = 0,
    ) -> tuple[list[CheckpointRow], int]:
        """Live checkpoints, newest first, and how many there are in all."""
        chosen = live() & CheckpointRow.kind.in_(kinds)
        if run_id is not None:
            chosen &= CheckpointRow.run_id == run_id
        order = (CheckpointRow.created_at.desc(), CheckpointRow.id.desc())
        query = select(CheckpointRow).where(chosen).order_by(*order).offset(offset).limit(limit)

        def work(db: Session) -> tuple[list[CheckpointRow], int]:
            total = db.scalar(select(func.count()).select_from(CheckpointRow).where(chosen)) or 0
            return list(db.scalars(query)), total

        return await self._db.call(work)

    async def newest(self, run_ids: Sequence[str]) -> dict[tuple[str, str], CheckpointRow]:
        """The newest live checkpoint of each run and kind."""
        query = (
            select(CheckpointRow)
            .where(CheckpointRow.run_id.in_(run_ids), live())
            .order_by(CheckpointRow.created_at, CheckpointRow.id)
        )
        return await self._db.call(
            lambda db: {(row.run_id, row.kind): row for row in db.scalars(query)}
        )

    async def publish(self, path: CheckpointPath, public: bool, *, by: str) -> None:
        """Raises `UnknownCheckpoint`."""
        event = "checkpoint_published" if public else "checkpoint_unpublished"
        await self._change(path, event, by, public=public)

    async def expire(self, path: CheckpointPath, expires_at: float | None, *, by: str) -> None:
        """Let a checkpoint end at a time (Unix seconds), or not at all. Raises as `get` does."""
        await self._change(path, "checkpoint_ttl_set", by, expires_at=expires_at)

    async def _change(self, path: CheckpointPath, event: str, by: str, **values: Any) -> None:
        def work(db: Session) -> bool:
            row = db.scalars(_one(path)).first()
            if row is None or _expired(row):
                return False
            for name, value in values.items():
                setattr(row, name, value)
            note(db, event, by, tinker_path=str(path), **values)
            return True

        if not await self._db.call(work):
            raise UnknownCheckpoint(f"There is no checkpoint {path}.")

    async def read(self, path: CheckpointPath, purpose: str, *, by: str) -> None:
        """Note that somebody is given the files of a checkpoint. Raises `UnknownCheckpoint`."""
        await self.get(path)
        details = {"tinker_path": str(path), "purpose": purpose}
        await self._db.call(lambda db: note(db, "checkpoint_read", by, **details))

    async def delete(self, path: CheckpointPath, *, by: str) -> None:
        """Remove a checkpoint, its row first. Raises `UnknownCheckpoint`."""
        async with self.lock(path):
            await self.get(path)
            await self._remove(path, "checkpoint_deleted", by)

    async def delete_expired(self) -> None:
        query = select(CheckpointRow).where(CheckpointRow.expires_at <= time.time())
        for row in await self._db.call(lambda db: list(db.scalars(query))):
            path = path_of(row)
            async with self.lock(path):  # meanwhile it may have been saved anew
                if not await self.exists(path):
                    await self._remove(path, "checkpoint_expired", THE_SERVER)

    async def _remove(self, path: CheckpointPath, event: str, by: str) -> None:
        def work(db: Session) -> None:
            for row in db.scalars(_one(path)):
                note(db, event, by, tinker_path=str(path), size_bytes=row.size_bytes)
                db.delete(row)

        await self._db.call(work)
        await asyncio.to_thread(shutil.rmtree, self.folder(path), ignore_errors=True)


def path_of(row: CheckpointRow) -> CheckpointPath:
    kind = next(k for k in _KINDS if k == row.kind)
    return CheckpointPath(row.run_id, kind, row.name)


def live() -> ColumnElement[bool]:
    """That a checkpoint's time is not over."""
    return CheckpointRow.expires_at.is_(None) | (CheckpointRow.expires_at > time.time())


def _one(path: CheckpointPath) -> Any:
    return select(CheckpointRow).where(
        CheckpointRow.run_id == path.run_id,
        CheckpointRow.kind == path.kind,
        CheckpointRow.name == path.name,
    )


def _expired(row: CheckpointRow) -> bool:
    return row.expires_at is not None and row.expires_at <= time.time()
