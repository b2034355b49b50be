"""Fetching results, and giving up on them."""

from __future__ import annotations

import json

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire import tinker
from ..futures import ExpiredFuture, UnknownFuture
from ..journal import Completion
from ..queue_state import queue_state
from .base import TinkerHandler


class _PollHandler(TinkerHandler):
    # A poll is no sign of a person's activity.
    _track_activity = False


class RetrieveFutureHandler(_PollHandler):
    """Waits for a result; 408 says that it is still to come, which the SDK takes without a word."""

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
            raise web.HTTPError(
                410, "This request has no result any more: it was fetched, or given up; ask anew."
            ) from None
        if result is None:
            self.set_status(408)
            pending = {"type": "try_again", "request_id": body.request_id}
            self.finish(json.dumps(pending | queue_state(self.service, body.request_id)))
            return
        self.finish(result.body, set_content_type=result.content_type)


class RetrieveFuturesHandler(_PollHandler):
    """Waits for any of a client's samples; says which are over, by numbers it sends back."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.RetrieveFutures)
        sampling, target = self.service.sampling, body.target
        await sampling.get(target.sampling_session_id)
        await sampling.retrieved(target.sampling_session_id, body.retrieved_request_ids)
        hold = self.extension.hold_seconds
        hold = hold if body.timeout is None else min(body.timeout, hold)
        client = (target.sampling_session_id, target.cloned_sampler_id)
        done, cursor = await sampling.completions.poll(client, body.prev_cursor, hold)
        self.reply({"completions": [_completion_json(one) for one in done], "cursor": cursor})


def _completion_json(completion: Completion) -> dict[str, object]:
    if completion.size is None:
        return {"state": "failed", "request_id": completion.request_id}
    return {
        "state": "finished",
        "request_id": completion.request_id,
        "response_payload_uncompressed_size": completion.size,
    }


class CancelFutureHandler(TinkerHandler):
    """Gives up a sample. Any id will do: it may be over, and the SDK does not want to know."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.CancelFuture)
        self.service.sampling.cancel(body.request_id)
        self.reply({})


HANDLERS = [
    (r"/retrieve_future", RetrieveFutureHandler),
    (r"/retrieve_futures", RetrieveFuturesHandler),
    (r"/cancel_future", CancelFutureHandler),
]
