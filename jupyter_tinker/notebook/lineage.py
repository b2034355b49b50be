"""Which steps led to where a run is, and which ones it was taken back from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Rows = list[dict[str, Any]]


def line(rows: Rows, branches: Sequence[dict[str, Any]], branch: int) -> Rows:
    """Of the steps of all branches, oldest first, those that led to the end of this one.

    `branches` has `number`, `parent` and `step` of every branch but the first, number 0: it began
    right after that step of that parent.
    """
    by_number = {one["number"]: one for one in branches}
    kept = [row for row in rows if row["branch"] == branch]
    while branch in by_number:
        branch, step = by_number[branch]["parent"], by_number[branch]["step"]
        kept = _until(step, [row for row in rows if row["branch"] == branch]) + kept
    return kept


def abandoned(rows: Rows, kept: Rows) -> list[Rows]:
    """The steps that are not kept, by branches."""
    known = {row["id"] for row in kept}
    left: dict[int, Rows] = {}
    for row in rows:
        if row["id"] not in known:
            left.setdefault(row["branch"], []).append(row)
    return list(left.values())


def _until(step: int, rows: Rows) -> Rows:
    """A branch up to right after a step. A skipped one has the number of the one before it, and
    numbers begin anew where weights were loaded without their optimizer."""
    ends = [n for n, row in enumerate(rows) if row["step"] == step and not row.get("skipped")]
    if ends:
        return rows[: ends[-1] + 1]
    return [row for row in rows if row["step"] < step]
