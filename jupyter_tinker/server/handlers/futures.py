"""Fetching results."""

from __future__ import annotations

import json

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire import tinker
from ..futures import ExpiredFuture, UnknownFuture
from .base import TinkerHandler


class RetrieveFutureHandler(TinkerHandler):
    """Waits for a result; 408 says that it is still to come, which the SDK takes without a word."""

    # A poll is no sign of a person's activity.
    _track_activity = False

    def _log(self) -> None:
        # Still to come is no news: it would fill the log of every long step.
        if self.get_status() != 408:
            super()._log()

    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.RetrieveFuture)
        try:
            result = await self.service.futures.poll(body.request_id, self.extension.hold_seconds)
        except UnknownFuture:
            raise web.HTTPError(404, f"There is no request {body.request_id[:100]!r}.") from None
        except ExpiredFuture:
            raise web.HTTPError(410, "This result was fetched and is no longer kept.") from None
        if result is None:
            self.set_status(408)
            pending = {"type": "try_again", "queue_state": "active"}
            self.finish(json.dumps({**pending, "request_id": body.request_id}))
            return
        self.finish(result.body, set_content_type=result.content_type)


HANDLERS = [(r"/retrieve_future", RetrieveFutureHandler)]
