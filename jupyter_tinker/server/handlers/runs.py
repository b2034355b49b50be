"""Our own routes beside the Tinker API: runs and their steps, for people and their notebooks."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire.controls import Controls, PastStep, parse_change
from ...wire.events import dumps
from ..history import Place
from ..queue_state import state_of
from ..registry import why_ended
from ..runs import Run
from ..schema import EventRow, RunRow, StepRow
from ..service import TinkerService
from .base import TinkerHandler

# Rows of one answer; a longer history takes several.
_PAGE = 10_000


def step_json(row: StepRow) -> dict[str, Any]:
    """All columns of a step."""
    return {column.name: getattr(row, column.name) for column in StepRow.__table__.columns}


def _steps_body(rows: list[StepRow]) -> str:
    return dumps({"steps": [step_json(row) for row in rows]})


def _events_body(rows: list[EventRow]) -> str:
    columns = [column.name for column in EventRow.__table__.columns]
    return dumps({"events": [{name: getattr(row, name) for name in columns} for row in rows]})


def run_json(
    service: TinkerService,
    row: RunRow,
    last: StepRow | None,
    tags: dict[str, list[str]],
    place: Place,
) -> dict[str, Any]:
    """A run as people see it: what it is, what it does now, and how it is steered. `tags` are those
    of its session, or of more, by their ids; of `place` only the branches are looked at."""
    run = service.registry.known(row.id)
    return {
        "run_id": row.id,
        "session_id": row.session_id,
        "session_tags": tags.get(row.session_id, []),
        "owner": row.owner,
        "base_model": row.base_model,
        "lora": row.lora,
        "user_metadata": row.user_metadata,
        "created_at": row.created_at,
        "last_request_at": row.last_request_at,
        "started_from": row.started_from,
        "state": state_of(service, row),
        "ended": why_ended(row) if run is None else run.ended,
        "controls": (Controls.from_json(row.controls) if run is None else run.controls).to_json(),
        "last_step": None if last is None else step_json(last),
        "branch": place.branch,
        "branches": [
            {
                "number": branch.number,
                "parent": place.branch_of(branch.parent_position),
                "step": branch.step,
                "created_at": branch.created_at,
                "actor": branch.actor,
            }
            for branch in place.branches
        ],
    }


async def whole_run_json(service: TinkerService, run: Run) -> dict[str, Any]:
    """`run_json`, and the step that the run is at."""
    last = await service.run_store.last_steps([run.id])
    tags = await service.run_store.tags([run.row.session_id])
    return {
        **run_json(service, run.row, last.get(run.id), tags, run.place),
        "step": run.step,
    }


class StatusHandler(TinkerHandler):
    """Whether there is an engine, what it computes with, and what takes long just now."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        supervisor = self.service.supervisor
        state = "running" if supervisor.status else "starting" if supervisor.starting else "stopped"
        status = supervisor.status
        self.reply(
            {
                "server_id": self.service.identity,
                "engine": state,
                "busy_seconds": supervisor.busy_seconds,
                "progress": self.service.progress.to_json(),
                "cell_seconds": supervisor.cell_seconds,
                "status": None if status is None else asdict(status),
            }
        )


class RunsHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        limit = self.int_argument("limit", 100, 1000)
        offset = self.int_argument("offset", 0, 2**31)
        live = self.int_argument("live", 0, 1) == 1
        rows, total = await self.service.run_store.runs(limit, offset, live=live)
        last = await self.service.run_store.last_steps([row.id for row in rows])
        tags = await self.service.run_store.tags(list({row.session_id for row in rows}))
        places = await self.service.history.branches([row.id for row in rows])
        runs = [
            run_json(self.service, row, last.get(row.id), tags, places.get(row.id, Place()))
            for row in rows
        ]
        self.reply({"runs": runs, "total": total})


class RunHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        run = await self.service.run(run_id)
        self.reply(await whole_run_json(self.service, run))


class ControlsHandler(TinkerHandler):
    """How a run is steered, and steering it; in force from its next optim_step that starts."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        run = await self.service.run(run_id)
        self.reply(run.controls.to_json())

    @web.authenticated
    @authorized
    async def post(self, run_id: str) -> None:
        change = parse_change(self.body())
        run = await self.service.steering.change(run_id, change, by=self.username)
        self.reply(run.controls.to_json())


class RewindHandler(TinkerHandler):
    """Takes a run back to right after a step; answers once the engine has it there."""

    @web.authenticated
    @authorized
    async def post(self, run_id: str) -> None:
        body = await self.parse(PastStep)
        run = await self.service.steering.rewind(run_id, body.step, body.branch, by=self.username)
        self.reply(await whole_run_json(self.service, run))


class ForkHandler(TinkerHandler):
    """Makes a checkpoint of a run's step, which new runs can start from."""

    @web.authenticated
    @authorized
    async def post(self, run_id: str) -> None:
        body = await self.parse(PastStep)
        path = await self.service.steering.fork(run_id, body.step, body.branch, by=self.username)
        self.reply({"path": str(path)})


class StepsHandler(TinkerHandler):
    """A page of a run's steps, oldest first; `after` is the id of the last one seen."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        await self.service.run(run_id)
        after = self.int_argument("after", 0, 2**62)
        limit = self.int_argument("limit", _PAGE, _PAGE)
        rows = await self.service.run_store.steps(run_id, after, limit)
        self.finish(await asyncio.to_thread(_steps_body, rows))


class RunEventsHandler(TinkerHandler):
    """A page of what happened to a run beside its steps, oldest first; `after` as for steps."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        await self.service.run(run_id)
        after = self.int_argument("after", 0, 2**62)
        limit = self.int_argument("limit", _PAGE, _PAGE)
        rows = await self.service.run_store.run_events(run_id, after, limit)
        self.finish(await asyncio.to_thread(_events_body, rows))


HANDLERS = [
    (r"/status", StatusHandler),
    (r"/runs", RunsHandler),
    (r"/runs/([^/]+)", RunHandler),
    (r"/runs/([^/]+)/steps", StepsHandler),
    (r"/runs/([^/]+)/events", RunEventsHandler),
    (r"/runs/([^/]+)/controls", ControlsHandler),
    (r"/runs/([^/]+)/rewind", RewindHandler),
    (r"/runs/([^/]+)/fork", ForkHandler),
]
