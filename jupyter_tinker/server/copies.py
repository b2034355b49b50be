"""Copies of checkpoints: runs that hold one checkpoint and cannot be trained.

A copy shares the files of its source, by hard links where the disk has them, and outlives it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..wire import staging, tinker
from ..wire.ops import OpError
from .checkpoints import CheckpointPath, Checkpoints, parse_path
from .database import Database
from .runs import id_of_run
from .schema import CheckpointRow, RunRow, SessionRow


class Copies:
    """Copies checkpoints within one server."""

    def __init__(self, database: Database, checkpoints: Checkpoints) -> None:
        self._db = database
        self._checkpoints = checkpoints
        self._one_at_a_time = asyncio.Lock()  # so that a repeated request finds the first one done

    async def copy(self, body: tinker.CopyWeights, *, by: str, key: str | None) -> CheckpointPath:
        """Copy a checkpoint into a new run; returns the copy's path.

        The run's place is `body`'s session, which has to be live, and model number; or else a new
        session in the project that `body` names. The same place, or the same idempotency `key`,
        gets the same copy. Raises `UnknownCheckpoint`, `BadRequest`, and `OpError` for a path that
        is none and a disk that fails.
        """
        source = parse_path(body.source_path)
        async with self._one_at_a_time:
            run_id, known = await self._db.call(lambda db: _place(db, body, key))
            path = CheckpointPath(run_id, source.kind, source.name)
            if known is not None and known.copied_from != str(source):
                raise tinker.BadRequest(
                    f"{run_id} is taken by another training run; choose another model_seq_id."
                )
            if known is not None and await self._checkpoints.exists(path):
                return path
            async with self._checkpoints.lock(source):
                row = await self._checkpoints.get(source)
                if known is None:
                    await self._db.call(lambda db: _add_run(db, path, source, body, by, key))
                folders = self._checkpoints.folder(source), self._checkpoints.folder(path)
                await asyncio.to_thread(_link, *folders)
            await self._add(path, row, body.ttl_seconds, by)
        return path

    async def _add(
        self, path: CheckpointPath, source: CheckpointRow, ttl: int | None, by: str
    ) -> None:
        await self._checkpoints.add(
            path,
            by=by,
            base_model=source.base_model,
            base_path=source.base_path,
            lora=source.lora,
            step=source.step,
            size_bytes=source.size_bytes,
            user_metadata=source.user_metadata,
            expires_at=None if ttl is None else time.time() + ttl,
        )


def _place(db: Session, body: tinker.CopyWeights, key: str | None) -> tuple[str, RunRow | None]:
    """The id of the run that is to hold a copy, and the run if there is one already."""
    if body.session_id is not None:
        if body.model_seq_id is None:
            raise tinker.BadRequest("copy_weights with a session_id needs a model_seq_id too.")
        run_id = id_of_run(body.session_id, body.model_seq_id)
        return run_id, db.get(RunRow, run_id)
    if body.destination_project_id is None:
        raise tinker.BadRequest(
            "copy_weights needs a destination_project_id, or a session_id and a model_seq_id."
        )
    known = None
    if key is not None:
        by_key = select(SessionRow.id).where(SessionRow.idempotency_key == key)
        known = db.scalars(by_key).first()
    run_id = id_of_run(known or str(uuid.uuid4()), 0)
    return run_id, db.get(RunRow, run_id)


def _add_run(
    db: Session,
    path: CheckpointPath,
    source: CheckpointPath,
    body: tinker.CopyWeights,
    by: str,
    key: str | None,
) -> None:
    """Store the run that holds the copy, and its session if that is to be a new one."""
    now = time.time()
    original = db.get_one(RunRow, source.run_id)
    session_id = path.run_id.partition(":")[0]
    if body.session_id is None:
        session = SessionRow(
            id=session_id,
            created_at=now,
            owner=by,
            sdk_version="",
            tags=[],
            user_metadata=None,
            project_id=body.destination_project_id,
            display_name=f"Copy of {source}",
            idempotency_key=key,
            finished_at=now,  # it has no client, and nothing is trained in it
            finish_reason="success",
        )
        db.add(session)
    run = RunRow(
        id=path.run_id,
        session_id=session_id,
        owner=by,
        base_model=original.base_model,
        base_path=original.base_path,
        hub_id=original.hub_id,
        architecture=original.architecture,
        lora=original.lora,
        user_metadata=original.user_metadata,
        created_at=now,
        last_request_at=now,
        copied_from=str(source),
    )
    db.add(run)


def _link(source: Path, target: Path) -> None:
    """Make `target` a folder of the files of `source`, which are never written again."""
    try:
        files = list(source.iterdir())
        fresh = staging.fresh_folder(target)
        try:
            for file in files:
                _link_file(file, fresh / file.name)
            shutil.rmtree(target, ignore_errors=True)  # of a copy that was cut short
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise OpError(f"The checkpoint could not be copied: {error.strerror}.", "server") from error


def _link_file(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # this disk has no hard links, or no more of them
        shutil.copyfile(source, target)
