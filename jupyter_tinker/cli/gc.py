"""The command that drops the histories of old runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from jupyter_core.application import base_aliases, base_flags
from traitlets import Bool, Float

from ..notebook.tables import Table
from ..server.events import Events
from ..server.extension import TinkerExtension
from ..server.retention import Retention, Size
from .base import Command

_DAY = 86_400.0


class GcCommand(Command):
    """Drop the histories of runs that nobody has used for long."""

    name = "jupyter-tinker-gc"
    description = """Drop the histories of runs that nobody has used for a while: the snapshots and
    data of which a run is revived, rewound and forked. Such a run computes no more. Its checkpoints
    are kept, and so are its steps and their metrics."""
    usage = "gc [--older-than=DAYS] [--dry-run]"

    older_than = Float(
        30.0, min=0.0, config=True, help="For how many days a run was not used, at least."
    )
    dry_run = Bool(False, config=True, help="Only say what would be dropped.")
    aliases = {**base_aliases, "older-than": "GcCommand.older_than"}  # noqa: RUF012
    flags = {  # noqa: RUF012 (traitlets' convention)
        **base_flags,
        "dry-run": ({"GcCommand": {"dry_run": True}}, dry_run.help),
    }

    def act(self, arguments: list[str]) -> None:
        if arguments:
            self.misused()
        dropped = asyncio.run(self._drop())
        if not dropped:
            print(f"No run has a history and was not used for {self.older_than:g} days.")
            return
        print(Table(("RUN", "MB"), [(size.run_id, f"{size.total / 1e6:.1f}") for size in dropped]))
        would = "would be" if self.dry_run else "are"
        print(f"{sum(size.total for size in dropped) / 1e6:.1f} MB {would} free.")

    async def _drop(self) -> list[Size]:
        state_dir = Path(TinkerExtension(config=self.config).state_dir)
        database = self.database()
        try:
            events = Events(database)
            retention = Retention(database, state_dir / "snapshots", events, log=self.log)
            old = await retention.unused_since(time.time() - self.older_than * _DAY)
            for size in [] if self.dry_run else old:
                await retention.drop(size.run_id, whole=True, by="jupyter tinker gc")
        finally:
            await database.close()
        return old
