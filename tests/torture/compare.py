"""Holds what two servers were made to do against one another, to the last bit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tests.servers import Server

from .client import Recording

# Of a step's row, what does not depend on how long things took.
_STEP = """branch, step, skipped, loss_sum, loss_mean, weight_sum, tokens, datums, grad_norm,
update_norm, learning_rate, grad_clip_norm, weight_decay"""


def differences(seen: Recording, reference: Recording) -> list[str]:
    """Where the two differ; empty if nowhere."""
    found = []
    for one, other in zip(seen.results, reference.results, strict=False):
        if one != other:
            found.append(
                f"turn {one[0]}, {one[1]}:\n{one[2]!r:.300}\ninstead of\n{other[2]!r:.300}"
            )
    if len(seen.results) != len(reference.results):
        found.append(f"{len(seen.results)} results instead of {len(reference.results)}")
    return found


def part(recording: Recording, turns: int) -> Recording:
    """What a recording has of the first turns."""
    results = [result for result in recording.results if result[0] < turns]
    return Recording(results, recording.seconds[:turns], recording.runs)


def tensors(server: Server, path: str) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a checkpoint, by file and name: dtype, shape and bytes."""
    run, kind, name = path.removeprefix("tinker://").split("/")
    folder = server.home / "data/tinker/checkpoints" / run.replace(":", "_") / kind / name
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as saved:
            for key in saved.keys():  # noqa: SIM118 (it is no mapping)
                array = saved.get_tensor(key)
                content = (str(array.dtype), list(array.shape), array.tobytes())
                found[f"{file.name}:{key}"] = content
    return found


class History:
    """What a server's database tells of runs."""

    def __init__(self, server: Server) -> None:
        self._file: Path = server.home / "data/tinker/tinker.db"

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as database:
            return database.execute(query, values).fetchall()

    def steps(self, run: str) -> list[tuple[Any, ...]]:
        return self.rows(f"SELECT {_STEP} FROM steps WHERE run_id = ? ORDER BY id", run)

    def operations(self, run: str) -> list[tuple[Any, ...]]:
        return self.rows(
            "SELECT position, kind, step FROM operations WHERE run_id = ? ORDER BY position",
            run,
        )

    def problems(self, runs: Sequence[str]) -> list[str]:
        """What must not be in any history: gaps, repetitions, and what failed or was not done."""
        return [problem for run in runs for problem in self._problems(run)]

    def _problems(self, run: str) -> Iterator[str]:
        requests = self.rows(
            "SELECT id, seq_id, kind, done_at IS NOT NULL, failed FROM requests WHERE run_id = ? "
            "ORDER BY seq_id",
            run,
        )
        if [row[1] for row in requests] != list(range(len(requests))):
            yield f"{run}: requests are numbered {[row[1] for row in requests]}"
        for _, number, kind, done, failed in requests:
            if not done or failed:
                yield f"{run}: {kind} number {number} {'failed' if done else 'was not done'}"
        operations = self.rows(
            "SELECT position, request_id FROM operations WHERE run_id = ? ORDER BY position", run
        )
        if [row[0] for row in operations] != list(range(1, len(operations) + 1)):
            yield f"{run}: operations are numbered {[row[0] for row in operations]}"
        made_by = [request for _, request in operations if request is not None]
        if len(set(made_by)) != len(made_by):
            yield f"{run}: a request was performed twice"
        if not set(made_by) <= {row[0] for row in requests}:
            yield f"{run}: an operation was made by nobody's request"
