"""The audit log: what was done to checkpoints, projects and keys, when, and by whom.

An entry is written in the transaction of what it tells of, so that neither is without the other.
"""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .database import Database
from .schema import AuditRow

_DAY = 86_400.0
THE_SERVER = "server"  # the actor of what nobody asked for, such as the end of a TTL

# Which events each resource of the SDK's filter stands for. There are no teams or organizations.
RESOURCES: dict[str, str] = {
    "all": "",
    "checkpoints": "checkpoint_",
    "projects": "project_",
    "teams": "team_",
    "organizations": "organization_",
}


def note(db: Session, event: str, actor: str, **details: Any) -> None:
    """Add an entry to the transaction of `db`; `event` is `resource_action`."""
    db.add(AuditRow(time=time.time(), actor=actor, event=event, details=details))


class Audit:
    """Reads the audit log."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def entries(self, resource: str, day: date) -> list[AuditRow]:
        """The entries of a day (midnight to midnight UTC), oldest first."""
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        query = (
            select(AuditRow)
            .where(
                AuditRow.time >= start.timestamp(),
                AuditRow.time < start.timestamp() + _DAY,
                AuditRow.event.startswith(RESOURCES[resource], autoescape=True),
            )
            .order_by(AuditRow.id)
        )
        return await self._db.call(lambda db: list(db.scalars(query)))
