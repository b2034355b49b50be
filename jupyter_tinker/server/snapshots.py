"""When runs are snapshot, where the files lie, and which of them are kept.

A snapshot is due once the run has computed for so long that the snapshot's own cost is a small part
of it. Old ones are thinned: the further back, the fewer.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

from ..wire import ops, staging
from .engine_client import EngineDied
from .history import History
from .runs import Run
from .schema import SnapshotRow
from .supervisor import EngineSupervisor

_BYTES_PER_SECOND = 200e6  # of a first snapshot, whose cost is not known yet
_BYTES_PER_PARAMETER = 12  # weights and two moments
_ALWAYS_KEPT = 3  # the newest of a run
# With accumulated gradients a snapshot is a third larger, so it is better to wait for a step.
_WAITS_FOR_A_STEP = 4.0


class Snapshots:
    """The snapshots of all runs, under one directory."""

    def __init__(
        self,
        supervisor: EngineSupervisor,
        history: History,
        directory: Path,
        *,
        overhead: float,
        log: Any,
    ) -> None:
        self._supervisor = supervisor
        self._history = history
        self._directory = directory
        self._overhead = overhead
        self._log = log
        self._costs: dict[str, float] = {}  # seconds of the last snapshot, by run
        self._writing: dict[str, asyncio.Task[None]] = {}  # by run
        self._begun: set[str] | None = set()  # files of this life, until `sweep` is done

    def file(self, row: SnapshotRow) -> Path:
        return self._directory / row.file

    async def consider(self, run: Run, *, boundary: bool) -> None:
        """Begin a snapshot if one is due. The run's lock is held, and the engine holds the run.

        `boundary`: nothing is accumulated.
        """
        patience = 1.0 if boundary else _WAITS_FOR_A_STEP
        if run.computed < patience * self._cost(run) / self._overhead or run.id in self._writing:
            return
        await self.begin(run)

    async def begin(self, run: Run) -> asyncio.Task[None] | None:
        """Begin a snapshot of what the run is now; the task ends when it is kept.

        None if the engine does not hold the run.
        """
        name = f"{run.id.replace(':', '_')}/{run.place.head:08d}.safetensors"
        row = SnapshotRow(run_id=run.id, position=run.place.head, step=run.step, file=name)
        op = ops.SnapshotRun(run.id, str(self._directory / name))
        if self._begun is not None:
            self._begun.add(name)
        try:
            answer = await self._supervisor.begin(op, generation=run.generation)
        except EngineDied:
            return None
        run.computed = 0.0
        task = asyncio.create_task(self._finish(run, row, answer))
        self._writing[run.id] = task
        task.add_done_callback(lambda _: self._over(run.id, task))
        return task

    def _over(self, run_id: str, task: asyncio.Task[None]) -> None:
        if self._writing.get(run_id) is task:
            del self._writing[run_id]

    async def keep(self, run: Run) -> None:
        """Have a snapshot of what the run is now, if the newest is older; waits for it."""
        newest = await self._history.snapshots(run.id)
        if not newest or newest[-1].position != run.place.head:
            task = await self.begin(run)
            if task is not None:
                await task

    async def _finish(self, run: Run, row: SnapshotRow, answer: Any) -> None:
        try:
            result, _ = await answer
            info = ops.SnapshotInfo(**result)
            row.size_bytes, row.sha256, row.created_at = info.size_bytes, info.sha256, time.time()
            self._costs[run.id] = info.blocked_seconds + info.write_seconds
            await self._history.add_snapshot(row)
            await self.thin(run)
        except EngineDied:
            pass  # there will be another
        except ops.OpError as error:
            self._log.error("Run %s could not be snapshot: %s", run.id, error)
        except Exception:
            self._log.exception("Run %s could not be snapshot.", run.id)

    def _cost(self, run: Run) -> float:
        size = run.parameters * _BYTES_PER_PARAMETER
        return self._costs.get(run.id, size / _BYTES_PER_SECOND)

    # Keeping and dropping

    async def thin(self, run: Run) -> None:
        """Drop what is too dense for its age."""
        rows = await self._history.snapshots(run.id)
        keep = kept(rows) | await self._history.loads(run.id)
        await self.delete([row for row in rows if row.position not in keep])

    async def delete(self, rows: list[SnapshotRow]) -> None:
        """Drop snapshots of one run, their rows first."""
        if rows:
            await self._history.drop_snapshots(rows[0].run_id, [row.position for row in rows])
            await asyncio.to_thread(unlink, [self.file(row) for row in rows])

    async def whole(self, row: SnapshotRow) -> bool:
        """Whether a snapshot's file is what was written."""
        return await asyncio.to_thread(_has_digest, self.file(row), row.sha256)

    async def sweep(self) -> None:
        """Remove what earlier lives left: files half written, and files without a row, where one
        ended between the two."""
        try:
            files = await asyncio.to_thread(self._swept)
            known = await self._history.snapshot_files()
            for file in files - known:
                if self._begun is not None and file not in self._begun:
                    (self._directory / file).unlink(missing_ok=True)
                await asyncio.sleep(0)
        except Exception:
            self._log.exception("What is left of old snapshots could not be removed.")
        finally:
            self._begun = None

    def _swept(self) -> set[str]:
        """The files that are whole. Blocking."""
        staging.sweep(self._directory, "*")
        found = self._directory.glob("*/*.safetensors")
        return {file.relative_to(self._directory).as_posix() for file in found}


def kept(rows: list[SnapshotRow]) -> set[int]:
    """The positions of the snapshots to keep, of a run's in the order of their positions.

    The newest, and of those before the last of each span of 1, 2, 4, 8, ... times the distance
    between the newest two: twice as long a history costs one snapshot more.
    """
    positions = [row.position for row in rows]
    chosen = set(positions[-_ALWAYS_KEPT:])
    older = positions[:-_ALWAYS_KEPT]
    if not older:
        return chosen
    newest, unit = positions[-1], max(1, positions[-1] - positions[-2])
    spans: dict[int, int] = {}
    for position in older:
        # The oldest of a span stays: it will be the next span's newest.
        spans.setdefault((max(newest - position, 1) // unit).bit_length(), position)
    return chosen | set(spans.values())


def unlink(files: list[Path]) -> None:
    """Remove what is there of some files."""
    for file in files:
        file.unlink(missing_ok=True)


def _has_digest(file: Path, sha256: str) -> bool:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except OSError:
        return False
