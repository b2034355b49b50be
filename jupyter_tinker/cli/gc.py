"""The command that drops the histories of old runs."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from jupyter_core.application import base_aliases, base_flags
from traitlets import Bool, Float

from ..notebook.client import LONG, Client
from ..notebook.connection import KEY
from ..notebook.servers import running_servers
from ..notebook.tables import Table
from ..server.data_lock import DataLock
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
    are kept, and so are its steps and their metrics. A run that a running
    server's engine holds, or whose client is there, is left alone."""
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
        dropped = self._dropped()
        if not dropped:
            print(f"No run has a history and was not used for {self.older_than:g} days.")
            return
        print(Table(("RUN", "MB"), [(size.run_id, f"{size.total / 1e6:.1f}") for size in dropped]))
        would = "would be" if self.dry_run else "are"
        snapshots, payloads = (
            sum(getattr(size, part) for size in dropped) / 1e6 for part in ("snapshots", "payloads")
        )
        print(f"{snapshots:.1f} MB of snapshots {would} removed from the disk.")
        print(f"{payloads:.1f} MB in the database's file {would} free for what comes next.")

    def _dropped(self) -> list[Size]:
        """What goes. A server that runs does it itself: it knows which runs live."""
        lock = DataLock(Path(TinkerExtension(config=self.config).state_dir))
        if not lock.take("jupyter tinker gc"):
            return self._by_server(lock)
        try:
            return asyncio.run(self._drop())
        finally:
            lock.release()

    def _by_server(self, lock: DataLock) -> list[Size]:
        holder = lock.holder()
        known = [server for server in running_servers() if server["pid"] == holder.get("pid")]
        url = known[0]["url"] if known else holder.get("server", "")
        if not url.startswith("http"):
            self.fail(lock.refusal())
        token = known[0]["token"] if known else ""
        key = f"tml-{token}" if token else os.environ.get(KEY, "tml-none-is-asked-for")
        body = {"older_than": self.older_than, "dry_run": self.dry_run}
        answer = Client(f"{url.rstrip('/')}/tinker", key).post("gc", body, timeout=LONG)
        return [Size(**size) for size in answer["runs"]]

    async def _drop(self) -> list[Size]:
        state_dir = Path(TinkerExtension(config=self.config).state_dir)
        database = self.database()
        try:
            events = Events(database)
            retention = Retention(database, state_dir / "snapshots", events, log=self.log)
            old = await retention.unused_since(time.time() - self.older_than * _DAY)
            for size in [] if self.dry_run else old:
                await retention.drop(size.run_id, by="jupyter tinker gc")
        finally:
            await database.close()
        return old
