"""The command that lists runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from ..notebook.connection import ConnectionFailed
from ..server.journal import Journal
from .base import print_table, when
from .remote import ServerCommand

_MOST = 100
_PATIENCE = 5.0  # seconds for a server to say that it is there


@dataclass(frozen=True)
class _Line:
    id: str
    base_model: str
    created_at: float
    step: int
    loss: float | None
    state: str | None

    def cells(self) -> tuple[str, ...]:
        loss = "" if self.loss is None else f"{self.loss:.4f}"
        state = () if self.state is None else (self.state,)
        return (self.id, self.base_model, str(self.step), loss, *state, when(self.created_at))


class RunsCommand(ServerCommand):
    name = "jupyter-tinker-runs"
    description = """List training runs, newest first: those of the server that runs, with their
    state; without one, those of the database."""
    usage = "runs"

    def act(self, arguments: list[str]) -> None:
        if arguments:
            self.misused()
        lines = self._of_the_server()
        if lines is None:
            lines = asyncio.run(self._of_the_database())
        state = ("STATE",) if lines and lines[0].state is not None else ()
        head = ("RUN", "BASE MODEL", "STEPS", "LOSS", *state, "CREATED")
        print_table(head, [line.cells() for line in lines])

    def _of_the_server(self) -> list[_Line] | None:
        """None if there is none. Raises `ConnectionFailed` for one that was named."""
        try:
            client = self.client(timeout=_PATIENCE)
        except ConnectionFailed:
            if self.url:
                raise
            return None
        return [_line(run) for run in client.get(f"runs?limit={_MOST}")["runs"]]

    async def _of_the_database(self) -> list[_Line]:
        database = self.database()
        try:
            journal = Journal(database, server="")
            rows, _ = await journal.runs(_MOST, 0)
            last = await journal.last_steps([row.id for row in rows])
        finally:
            await database.close()
        found = [(row, last.get(row.id)) for row in rows]
        return [
            _Line(
                row.id,
                row.base_model,
                row.created_at,
                step.step if step else 0,
                step.loss_mean if step else None,
                None,
            )
            for row, step in found
        ]


def _line(run: dict[str, Any]) -> _Line:
    last = run["last_step"] or {"step": 0, "loss_mean": None}
    return _Line(
        run["run_id"],
        run["base_model"],
        run["created_at"],
        last["step"],
        last["loss_mean"],
        run.get("state", ""),
    )
