"""What runs were trained on last, for people who want to see which tokens are hard."""

from __future__ import annotations

import asyncio
import json

from jupyter_server.auth.decorator import authorized
from tornado import web

from ..batches import MOST_BATCHES, MOST_LENGTH, MOST_SEQUENCES, Wish
from .base import TinkerHandler


class BatchesHandler(TinkerHandler):
    """A run's last batches, newest first."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        await self.service.run(run_id)
        limit = self.int_argument("limit", 20, MOST_BATCHES)
        self.reply(await self.service.batches.list(run_id, limit))


class BatchHandler(TinkerHandler):
    """The hardest sequences of a batch, token by token."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str, batch: str) -> None:
        run = await self.service.run(run_id)
        if not batch.isdecimal() or len(batch) > 18:
            raise web.HTTPError(404, f"A batch is a number, and not {batch[:50]!r}.")
        sequences = self.int_argument("sequences", 8, MOST_SEQUENCES)
        length = max(1, self.int_argument("length", MOST_LENGTH, MOST_LENGTH))
        answer = await self.service.batches.view(run.row, Wish(int(batch), sequences, length))
        self.finish(await asyncio.to_thread(json.dumps, answer))


HANDLERS = [
    (r"/runs/([^/]+)/batches", BatchesHandler),
    (r"/runs/([^/]+)/batches/([^/]+)", BatchHandler),
]
