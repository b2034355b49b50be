"""Timelines of sessions, as Chrome trace events: what ui.perfetto.dev and chrome://tracing show.

Each run is a process of the trace; its requests are spans from acceptance to result, its optimizer
steps instants, and what they measured are counters.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import case, select
from sqlalchemy.orm import Session

from .database import Database
from .schema import RequestRow, RunRow, SessionRow, StepRow

KEPT_SECONDS = 3600.0  # for how long a trace can be fetched
_BATCH = 1000
_COUNTERS = ("loss_mean", "grad_norm", "learning_rate", "tokens", "memory_bytes")

Event = dict[str, Any]


class Traces:
    """Writes traces in threads, one job for a session at a time."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._db = database
        self._directory = directory
        self._jobs: dict[str, asyncio.Task[None]] = {}

    def file(self, session_id: str) -> Path:
        """Where a session's trace lies, or will lie."""
        return self._directory / f"{session_id}.json"

    async def export(self, session_id: str, patience: float) -> bool:
        """Whether a trace of a session that exists is ready.

        The first call begins one, and later ones ask about it, each waiting up to `patience`
        seconds. Whoever asks after it was ready has it written anew. Raises `OSError` and the
        database's errors if it could not be written.
        """
        job = self._jobs.get(session_id)
        if job is None:
            job = asyncio.create_task(asyncio.to_thread(self._write, session_id))
            self._jobs[session_id] = job
        done, _ = await asyncio.wait([job], timeout=patience)
        if not done:
            return False
        self._jobs.pop(session_id, None)
        job.result()
        return True

    def tidy(self) -> None:
        """Remove traces that can no longer be fetched. Blocking."""
        for file in self._directory.glob("*"):
            if file.stat().st_mtime < time.time() - KEPT_SECONDS:
                file.unlink(missing_ok=True)

    def _write(self, session_id: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                # On a connection of this thread's own: the database's thread is not held up.
                self._db.run(lambda db: file.writelines(_document(_events(db, session_id))))
            os.replace(name, self.file(session_id))
        except BaseException:
            os.unlink(name)
            raise


def _document(events: Iterable[Event]) -> Iterator[str]:
    yield '{"displayTimeUnit": "ms", "traceEvents": [\n'
    for number, event in enumerate(events):
        yield (",\n" if number else "") + json.dumps(event)
    yield "\n]}\n"


def _events(db: Session, session_id: str) -> Iterator[Event]:
    session = db.get_one(SessionRow, session_id)
    about = {"owner": session.owner, "sdk_version": session.sdk_version, "tags": session.tags}
    yield _named(0, f"session {session.display_name or session_id}")
    yield _instant(0, "session created", session.created_at, about)
    if session.finished_at is not None:
        how = {"reason": session.finish_reason, "detail": session.finish_detail}
        yield _instant(0, "session finished", session.finished_at, how)
    processes: dict[str, int] = {}
    runs = select(RunRow).where(RunRow.session_id == session_id).order_by(RunRow.created_at)
    for run in db.scalars(runs):
        processes[run.id] = len(processes) + 1
        yield _named(processes[run.id], f"run {run.id} on {run.base_model}")
    yield from _requests(db, session_id, processes)
    yield from _steps(db, processes)


def _requests(db: Session, session_id: str, processes: dict[str, int]) -> Iterator[Event]:
    of_session = RequestRow.run_id.startswith(f"{session_id}:", autoescape=True)
    query = (
        select(
            RequestRow.id,
            RequestRow.run_id,
            RequestRow.seq_id,
            RequestRow.kind,
            RequestRow.accepted_at,
            RequestRow.done_at,
            RequestRow.failed,
            case((RequestRow.failed, RequestRow.result)),
        )
        .where(of_session)
        .order_by(RequestRow.accepted_at)
        .execution_options(yield_per=_BATCH)
    )
    for id_, run_id, seq_id, kind, accepted, done, failed, error in db.execute(query):
        span = {"name": kind, "cat": "request", "id": id_, "pid": processes.get(run_id, 0)}
        args: Event = {"run": run_id, "seq_id": seq_id, "done": done is not None, "failed": failed}
        if error:
            args["error"] = json.loads(error).get("error")
        yield {**span, "ph": "b", "ts": _micro(accepted), "args": args}
        if done is not None:
            yield {**span, "ph": "e", "ts": _micro(done)}


def _steps(db: Session, processes: dict[str, int]) -> Iterator[Event]:
    query = select(StepRow).where(StepRow.run_id.in_(processes)).order_by(StepRow.id)
    for row in db.scalars(query.execution_options(yield_per=_BATCH)):
        step = {column.name: getattr(row, column.name) for column in StepRow.__table__.columns}
        process = processes[row.run_id]
        yield _instant(process, f"optimizer step {row.step}", row.time, step)
        for name in _COUNTERS:
            if step[name] is not None:
                counter = {"name": name, "ph": "C", "pid": process, "ts": _micro(row.time)}
                yield {**counter, "args": {name: step[name]}}


def _named(process: int, name: str) -> Event:
    return {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}}


def _instant(process: int, name: str, when: float, args: Event) -> Event:
    return {
        "name": name,
        "ph": "i",
        "s": "p",
        "pid": process,
        "tid": 0,
        "ts": _micro(when),
        "args": args,
    }


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)
