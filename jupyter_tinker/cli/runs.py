"""The command that lists runs."""

from __future__ import annotations

import asyncio
from typing import Any

from ..notebook.connection import ConnectionFailed
from ..notebook.tables import runs_table
from ..server.run_store import RunStore
from ..server.schema import RunRow, StepRow
from .remote import ServerCommand

_MOST = 100
_PATIENCE = 5.0  # seconds for a server to say that it is there


class RunsCommand(ServerCommand):
    name = "jupyter-tinker-runs"
    description = """List training runs, newest first: those of the server that runs, with their
    state; without one, those of the database."""
    usage = "runs"

    def act(self, arguments: list[str]) -> None:
        if arguments:
            self.misused()
        runs = self._of_the_server()
        print(runs_table(asyncio.run(self._of_the_database()) if runs is None else runs))

    def _of_the_server(self) -> list[dict[str, Any]] | None:
        """None if there is none. Raises `ConnectionFailed` for one that was named."""
        try:
            client = self.client(timeout=_PATIENCE)
        except ConnectionFailed:
            if self.url:
                raise
            return None
        runs: list[dict[str, Any]] = client.get(f"runs?limit={_MOST}")["runs"]
        return runs

    async def _of_the_database(self) -> list[dict[str, Any]]:
        """What the server would say of them, without their state."""
        database = self.database()
        try:
            store = RunStore(database)
            rows, _ = await store.runs(_MOST, 0)
            last = await store.last_steps([row.id for row in rows])
        finally:
            await database.close()
        return [_known(row, last.get(row.id)) for row in rows]


def _known(row: RunRow, last: StepRow | None) -> dict[str, Any]:
    return {
        "run_id": row.id,
        "base_model": row.base_model,
        "created_at": row.created_at,
        "last_step": last and {"step": last.step, "loss_mean": last.loss_mean},
    }
