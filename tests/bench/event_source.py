"""A Jupyter extension beside ours that records made-up steps, as if so many runs trained, and looks
how long the event loop was held meanwhile: GET /bench/steps?rate=&runs=&count=."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from jupyter_server.base.handlers import APIHandler
from tornado import web

from jupyter_tinker.server.events import Events
from tests.server.sse import step_row

_LOOK_SECONDS = 0.001


class _StepsHandler(APIHandler):
    @web.authenticated
    async def get(self) -> None:
        arguments = (self.get_query_argument(name) for name in ("rate", "runs", "count"))
        rate, runs, count = map(int, arguments)
        events = self.settings["tinker_service"].events
        held: list[float] = []
        watching = asyncio.ensure_future(_look(held))
        began, used = time.perf_counter(), time.process_time()
        for step in range(count // runs):
            due = began + step * runs / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await asyncio.gather(*(_record(events, f"run-{n}", step + 1) for n in range(runs)))
        took = time.perf_counter() - began
        await asyncio.sleep(0.5)
        watching.cancel()
        used = time.process_time() - used
        self.finish(json.dumps({"seconds": took, "cpu": used, "held": sorted(held)}))


async def _record(events: Events, run: str, step: int) -> None:
    """One step in a transaction of its own."""
    await events._db.call(lambda db: events.record_step(db, step_row(run, step)))


async def _look(held: list[float]) -> None:
    """Writes down by how many seconds the loop is late, each time."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_LOOK_SECONDS)
        held.append(time.perf_counter() - before - _LOOK_SECONDS)


def _load_jupyter_server_extension(serverapp: Any) -> None:
    serverapp.web_app.add_handlers(".*$", [(r"/bench/steps", _StepsHandler)])


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "tests.bench.event_source"}]
