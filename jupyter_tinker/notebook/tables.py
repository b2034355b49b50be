"""Tables of a few columns, as text and as HTML."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runs import Run

    _Runs = list[Run]
else:
    _Runs = list

_SHOWN = 20

Rows = Sequence[Sequence[str]]


class Table:
    """Shows itself in a notebook and in a terminal."""

    def __init__(self, head: Sequence[str], rows: Rows) -> None:
        self.head = head
        self.rows = rows

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)) for row in (self.head, *self.rows)]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{escape(cell.capitalize())}</th>" for cell in self.head)
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


class RunList(_Runs):
    """Runs, newest first: a list that shows itself as a table."""

    def __repr__(self) -> str:
        return "\n".join([repr(self._table), *self._more])

    def _repr_html_(self) -> str:
        return self._table._repr_html_() + "".join(f"<p>{line}</p>" for line in self._more)

    @property
    def _table(self) -> Table:
        return runs_table([run.known for run in self[:_SHOWN]])

    @property
    def _more(self) -> list[str]:
        return [f"and {len(self) - _SHOWN} older ones"] if len(self) > _SHOWN else []


def runs_table(runs: Sequence[dict[str, Any]]) -> Table:
    """Runs as the server lists them; without a column for the state if that is not known."""
    stateful = any("state" in run for run in runs)
    head = ("RUN", "BASE MODEL", "STEPS", "LOSS", *(("STATE",) if stateful else ()), "CREATED")
    return Table(head, [_cells(run, stateful) for run in runs])


def _cells(run: dict[str, Any], stateful: bool) -> Sequence[str]:
    last = run["last_step"] or {"step": 0, "loss_mean": None}
    loss = "" if last["loss_mean"] is None else f"{last['loss_mean']:.4f}"
    state = (run.get("state", ""),) if stateful else ()
    made = when(run["created_at"])
    return (run["run_id"], run["base_model"], str(last["step"]), loss, *state, made)


def keys_table(keys: Sequence[dict[str, Any]]) -> Table:
    """Keys, of `name`, `created_at` and `revoked_at`."""
    return Table(
        ("NAME", "CREATED", "STATE"),
        [
            (key["name"], when(key["created_at"]), "revoked" if key["revoked_at"] else "live")
            for key in keys
        ],
    )


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
