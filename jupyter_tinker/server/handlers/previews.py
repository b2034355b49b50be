"""What runs are asked while they train, and what they answer."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire.events import dumps
from ...wire.previews import parse_preview
from ..schema import EventRow
from .base import TinkerHandler

_PAGE = 1000


class PreviewHandler(TinkerHandler):
    """The prompts of a run and when they are asked; POST asks them now, of what the run is.

    Who posts is answered at once; the answers come as an event.
    """

    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        self.reply(await self.service.previews.describe(run_id))

    @web.authenticated
    @authorized
    async def put(self, run_id: str) -> None:
        body = self.body()
        preview = await self.off_loop(lambda: parse_preview(body), len(body))
        await self.service.previews.change(run_id, preview, by=self.username)
        self.reply(await self.service.previews.describe(run_id))

    @web.authenticated
    @authorized
    async def post(self, run_id: str) -> None:
        await self.service.previews.now(run_id, by=self.username)
        self.reply(await self.service.previews.describe(run_id))


class PreviewsHandler(TinkerHandler):
    """A page of what a run answered, oldest first; `after` is the id of the last one seen."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        after = self.int_argument("after", 0, 2**62)
        limit = self.int_argument("limit", _PAGE, _PAGE)
        rows = await self.service.previews.rounds(run_id, after, limit)
        self.finish(await asyncio.to_thread(_body, rows))


def _body(rows: list[EventRow]) -> str:
    return dumps({"previews": [_round(row) for row in rows]})


def _round(row: EventRow) -> dict[str, Any]:
    head = {"id": row.id, "time": row.time, "step": row.step, "actor": row.actor}
    return {**head, **row.data}


HANDLERS = [
    (r"/runs/([^/]+)/preview", PreviewHandler),
    (r"/runs/([^/]+)/previews", PreviewsHandler),
]
