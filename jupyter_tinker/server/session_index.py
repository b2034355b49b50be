"""Finding sessions again: search, projects, who is still there, and what their checkpoints take.

Projects are names that clients give; a session without one is in the project "default".
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from ..wire import tinker
from .audit import note
from .checkpoints import live
from .database import Database
from .schema import CheckpointRow, RunRow, SessionRow

NO_PROJECT = "default"
_SILENT_SECONDS = 120.0  # without a heartbeat, of which the SDK sends one every ten seconds
_BATCH = 500


@dataclass(frozen=True)
class Found:
    """A session that a search found, and its live checkpoints."""

    row: SessionRow
    alive: bool
    checkpoints: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Storage:
    """What the checkpoints of one owner in one project take."""

    project_id: str
    owner: str
    checkpoints: int
    size_bytes: int


def in_projects(project_ids: Sequence[str]) -> ColumnElement[bool]:
    """That a session is in one of some projects."""
    return func.coalesce(SessionRow.project_id, NO_PROJECT).in_(project_ids)


class SessionIndex:
    """Looks for sessions, and remembers which of them were heard of lately."""

    def __init__(self, database: Database, checkpoints: Path) -> None:
        self._db = database
        self._checkpoints = checkpoints
        self._heard: dict[str, float] = {}
        self._began = time.monotonic()

    def heard_of(self, session_id: str) -> None:
        """A sign of life of a session's client."""
        self._heard[session_id] = time.monotonic()

    def alive(self, session_id: str) -> bool:
        """Whether a session's client gave a sign of life to this server lately."""
        return time.monotonic() - self._heard.get(session_id, -_SILENT_SECONDS) < _SILENT_SECONDS

    def silent_seconds(self, session_id: str) -> float:
        """For how long this server has not heard of a session's client."""
        return time.monotonic() - self._heard.get(session_id, self._began)

    async def assign(self, session_id: str, project_id: str, *, by: str) -> None:
        """Move a session that exists, and with it its runs, into a project."""

        def work(db: Session) -> None:
            db.get_one(SessionRow, session_id).project_id = project_id
            details = {"session_id": session_id, "project_id": project_id}
            note(db, "project_session_assigned", by, **details)

        await self._db.call(work)

    async def search(self, wanted: tinker.SessionSearch) -> tuple[list[Found], bool]:
        """A page of sessions, newest first, and whether there are more."""

        def work(db: Session) -> tuple[list[Found], bool]:
            query = _newest_first(db, wanted)
            rows = []
            for row in db.scalars(query.execution_options(yield_per=_BATCH)):
                if _matches(row, wanted, self.alive):
                    rows.append(row)
                if len(rows) > wanted.limit:
                    break
            page = rows[: wanted.limit]
            sizes = _checkpoint_sizes(db, [row.id for row in page])
            found = [Found(row, self.alive(row.id), *sizes.get(row.id, (0, 0))) for row in page]
            return found, len(rows) > wanted.limit

        return await self._db.call(work)

    def storage(self, project_id: str | None) -> list[Storage]:
        """What live checkpoints take on the disk, by project and owner. Blocking.

        A file that several checkpoints share is counted once, for the oldest of them.
        """
        query = (
            select(CheckpointRow.folder, SessionRow.project_id, SessionRow.owner)
            .join(RunRow, RunRow.id == CheckpointRow.run_id)
            .join(SessionRow, SessionRow.id == RunRow.session_id)
            .where(live())
            .order_by(CheckpointRow.id)
        )
        counted: set[tuple[int, int]] = set()
        totals: dict[tuple[str, str], list[int]] = {}
        for folder, project, owner in self._db.run(lambda db: db.execute(query).all()):
            sizes = totals.setdefault((project or NO_PROJECT, owner), [])
            sizes.append(sum(_sizes(self._checkpoints / folder, counted)))
        return [
            Storage(project, owner, len(sizes), sum(sizes))
            for (project, owner), sizes in sorted(totals.items())
            if project_id in (None, project)
        ]


def _newest_first(db: Session, wanted: tinker.SessionSearch) -> Select[Any]:
    query = select(SessionRow).order_by(SessionRow.created_at.desc(), SessionRow.id.desc())
    if wanted.project_ids is not None:
        query = query.where(in_projects(wanted.project_ids))
    if wanted.cursor is not None:
        last = db.get(SessionRow, wanted.cursor.last_session_id)
        # The row knows the moment exactly, the cursor to the microsecond.
        then = wanted.cursor.last_created_at.timestamp() if last is None else last.created_at
        same = and_(SessionRow.created_at == then, SessionRow.id < wanted.cursor.last_session_id)
        query = query.where(or_(SessionRow.created_at < then, same))
    return query


def _matches(row: SessionRow, wanted: tinker.SessionSearch, alive: Callable[[str], bool]) -> bool:
    metadata = tinker.string_values(row.user_metadata) or {}
    return (
        _is_named(row, wanted)
        and all(metadata.get(key) == value for key, value in wanted.user_metadata.items())
        and (wanted.owner.owner_urns is None or row.owner in wanted.owner.owner_urns)
        and (
            wanted.statuses is None
            or any(_has_status(row, status, alive) for status in wanted.statuses)
        )
    )


def _is_named(row: SessionRow, wanted: tinker.SessionSearch) -> bool:
    if wanted.session_id is None and wanted.display_name is None:
        return True
    words = (wanted.display_name or "").casefold().split()
    name = (row.display_name or "").casefold()
    return row.id == wanted.session_id or (bool(words) and all(word in name for word in words))


def _has_status(
    row: SessionRow, status: tinker.SessionStatus, alive: Callable[[str], bool]
) -> bool:
    if status.type == "active":
        return row.finished_at is None and alive(row.id)
    if status.type == "client_finished":
        reasons = status.reasons
        return row.finished_at is not None and (reasons is None or row.finish_reason in reasons)
    return False  # nothing here fails or cancels a session


def _checkpoint_sizes(db: Session, session_ids: list[str]) -> dict[str, tuple[int, int]]:
    """Number and bytes of the live checkpoints of sessions that have some."""
    query = (
        select(RunRow.session_id, func.count(), func.sum(CheckpointRow.size_bytes))
        .join(RunRow, RunRow.id == CheckpointRow.run_id)
        .where(RunRow.session_id.in_(session_ids), live())
        .group_by(RunRow.session_id)
    )
    return {session: (count, size) for session, count, size in db.execute(query)}


def _sizes(folder: Path, counted: set[tuple[int, int]]) -> Iterator[int]:
    try:
        files = [os.stat(entry) for entry in os.scandir(folder)]
    except OSError:  # deleted since
        return
    for file in files:
        identity = (file.st_dev, file.st_ino)
        if file.st_ino == 0 or identity not in counted:
            counted.add(identity)
            yield file.st_size
