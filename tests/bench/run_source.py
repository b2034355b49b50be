"""A Jupyter extension beside ours that makes up runs and lets them make steps, without an engine.

GET /bench/run?steps= answers with a new run that has made so many.
GET /bench/train?run=&rate=&count= records more, one at a time as a trainer does, and answers when
they are made.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from dataclasses import asdict
from typing import Any

from jupyter_server.base.handlers import APIHandler
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session
from tornado import web

from jupyter_tinker.server.events import Events
from jupyter_tinker.server.schema import RunRow, SessionRow, StepRow
from jupyter_tinker.wire.ops import LoraSpec
from tests.server.sse import step_row

_PART = 5000


class _RunHandler(APIHandler):
    @web.authenticated
    async def get(self) -> None:
        steps = int(self.get_query_argument("steps"))
        events: Events = self.settings["tinker_service"].events
        session = uuid.uuid4().hex
        run = f"{session}:train:0"
        await events._db.call(lambda db: add_run(db, session, run))
        for first in range(1, steps + 1, _PART):
            numbers = range(first, min(first + _PART, steps + 1))
            await events._db.call(lambda db, numbers=numbers: add_steps(db, run, numbers))
        await events.emit(run, "run_created")
        self.finish(json.dumps({"run": run}))


class _TrainHandler(APIHandler):
    @web.authenticated
    async def get(self) -> None:
        run, rate = self.get_query_argument("run"), float(self.get_query_argument("rate"))
        events: Events = self.settings["tinker_service"].events
        first = 1 + await events._db.call(lambda db: _newest_step(db, run))
        began = time.perf_counter()
        for made in range(int(self.get_query_argument("count"))):
            await asyncio.sleep(max(0.0, began + made / rate - time.perf_counter()))
            row = _step(run, first + made)
            await events._db.call(lambda db, row=row: events.record_step(db, row))
        self.finish(json.dumps({"step": first + made}))


def add_run(db: Session, session: str, run: str) -> None:
    now = time.time()
    db.add(SessionRow(id=session, created_at=now, owner="bench", sdk_version="", tags=[]))
    db.flush()
    db.add(
        RunRow(
            id=run,
            session_id=session,
            owner="bench",
            base_model="none",
            base_path="none",
            architecture="none",
            lora=asdict(LoraSpec(rank=8, seed=0)),
            user_metadata={"total_steps": 200_000},
            created_at=now,
            last_request_at=now,
        )
    )


def add_steps(db: Session, run: str, numbers: range) -> None:
    columns = [column.name for column in StepRow.__table__.columns if column.name != "id"]
    rows = [_step(run, number) for number in numbers]
    db.execute(insert(StepRow), [{name: getattr(row, name) for name in columns} for row in rows])


def _newest_step(db: Session, run: str) -> int:
    return db.scalar(select(func.max(StepRow.step)).where(StepRow.run_id == run)) or 0


def _step(run: str, number: int) -> StepRow:
    """A step of a loss that falls, and of curves that are no smoother than real ones."""
    row = step_row(run, number)
    noise = math.sin(12.9898 * number) * 43758.5453 % 1.0
    row.loss_mean = 3.0 / (1.0 + number / 3000.0) + 0.4 * noise
    row.grad_norm = 0.6 + 0.9 * (math.sin(78.233 * number) * 43758.5453 % 1.0)
    row.learning_rate_requested = 2e-4 * (1.0 - (number % 50_000) / 60_000.0)
    row.learning_rate = 0.5 * row.learning_rate_requested
    return row


def _load_jupyter_server_extension(serverapp: Any) -> None:
    serverapp.web_app.add_handlers(
        ".*$", [(r"/bench/run", _RunHandler), (r"/bench/train", _TrainHandler)]
    )


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "tests.bench.run_source"}]
