"""Our own routes beside the Tinker API: runs and their steps, for people and their notebooks."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from ..schema import RunRow, StepRow
from .base import TinkerHandler

# Rows of one answer; a longer history takes several.
_PAGE = 10_000


def step_json(row: StepRow) -> dict[str, Any]:
    """All columns of a step."""
    return {column.name: getattr(row, column.name) for column in StepRow.__table__.columns}


def _steps_body(rows: list[StepRow]) -> str:
    return json.dumps({"steps": [step_json(row) for row in rows]})


def run_json(row: RunRow, last: StepRow | None, ended: str | None) -> dict[str, Any]:
    return {
        "run_id": row.id,
        "session_id": row.session_id,
        "owner": row.owner,
        "base_model": row.base_model,
        "lora": row.lora,
        "user_metadata": row.user_metadata,
        "created_at": row.created_at,
        "last_request_at": row.last_request_at,
        "ended": ended,
        "last_step": None if last is None else step_json(last),
    }


class StatusHandler(TinkerHandler):
    """Whether there is an engine, and what it computes with."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        supervisor = self.service.supervisor
        state = "running" if supervisor.status else "starting" if supervisor.starting else "stopped"
        status = supervisor.status
        self.reply(
            {
                "engine": state,
                "busy_seconds": supervisor.busy_seconds,
                "status": None if status is None else asdict(status),
            }
        )


class RunsHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        limit = self.int_argument("limit", 100, 1000)
        offset = self.int_argument("offset", 0, 2**31)
        rows, total = await self.service.journal.runs(limit, offset)
        last = await self.service.journal.last_steps([row.id for row in rows])
        runs = [run_json(row, last.get(row.id), self.service.ended(row)) for row in rows]
        self.reply({"runs": runs, "total": total})


class StepsHandler(TinkerHandler):
    """A page of a run's steps, oldest first; `after` is the id of the last one seen."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        await self.service.run(run_id)
        after = self.int_argument("after", 0, 2**62)
        limit = self.int_argument("limit", _PAGE, _PAGE)
        rows = await self.service.journal.steps(run_id, after, limit)
        self.finish(await asyncio.to_thread(_steps_body, rows))


HANDLERS = [
    (r"/status", StatusHandler),
    (r"/runs", RunsHandler),
    (r"/runs/([^/]+)/steps", StepsHandler),
]
