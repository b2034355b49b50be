"""The stream of events, as Server-Sent Events."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator, Set
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web
from tornado.iostream import StreamClosedError

from ..watchers import Watcher
from .base import TinkerHandler

_HEARTBEAT_SECONDS = 15.0  # below the minute after which proxies take a connection for dead
# A message and no comment: a browser's EventSource tells of none, and could not tell a quiet server
# from a connection that died without a sign.
_HEARTBEAT = b"event: heartbeat\ndata: {}\n\n"
_RETRY_MILLISECONDS = 2000
_MAX_RUNS = 100  # in one request; who wants more watches all
# Small enough that whoever reads at all takes one within `stall_seconds`.
_PIECE = 2**14
# What the operating system holds for a client that does not read. Left alone it grows to megabytes,
# and takes as much before one notices.
_SEND_BUFFER = 2**16


class EventsHandler(TinkerHandler):
    """Events for as long as the client takes them and the server runs.

    Begins behind `Last-Event-ID` or `after`, else with what comes from now on.
    """

    watcher: Watcher | None = None

    @web.authenticated
    @authorized
    async def get(self) -> None:
        runs = await self._runs()
        with await self.service.events.watch(self._after(), runs) as watcher:
            self.watcher = watcher
            try:
                dropped = await self._follow(watcher)
            except StreamClosedError:
                return
        await self._end(dropped)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self.watcher is not None:
            self.watcher.close()

    async def _runs(self) -> Set[str] | None:
        """The runs that are asked for; None: all. Raises `UnknownRun`."""
        runs = frozenset(self.get_query_arguments("run"))
        if len(runs) > _MAX_RUNS:
            raise web.HTTPError(
                400, f"At most {_MAX_RUNS} runs can be named; leave `run` out to watch all."
            )
        for run in runs:
            await self.service.run(run)
        return runs or None

    def _after(self) -> int | None:
        # A browser that connects again sends the header with the URL it began with.
        for name, text in (
            ("Last-Event-ID", self.request.headers.get("Last-Event-ID", "")),
            ("after", self.get_query_argument("after", "")),
        ):
            if text:
                if not text.isascii() or not text.isdecimal() or len(text) > 18:
                    raise web.HTTPError(
                        400, f"{name} must be the id of an event, and is {text[:50]!r}."
                    )
                return int(text)
        return None

    async def _follow(self, watcher: Watcher) -> str | None:
        """Send what there is until either side ends it. Returns why the watcher was dropped, if it
        was. Raises `StreamClosedError`."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None and stream.socket is not None:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        # The id lets a client that loses this connection before anything happens miss nothing.
        news: list[bytes] | None
        news = [f"retry: {_RETRY_MILLISECONDS}\nid: {watcher.cursor}\n\n".encode()]
        while news is not None:
            for piece in _pieces(news):
                if not await self._send(watcher, piece):
                    return None if watcher.closed.is_set() else self._stalled()
            news = await watcher.next(_HEARTBEAT_SECONDS)
            news = [_HEARTBEAT] if news == [] else news
        return None

    async def _send(self, watcher: Watcher, piece: bytes) -> bool:
        """Whether the client took it. Raises `StreamClosedError`."""
        self.write(piece)
        sent = self.flush()
        if not sent.done():
            ended: asyncio.Future[Any] = asyncio.ensure_future(watcher.closed.wait())
            patience = self.service.events.limits.stall_seconds
            await asyncio.wait({sent, ended}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
        if sent.done():
            sent.result()
            await asyncio.sleep(0)  # a client that takes all at once must not hold the loop
        return sent.done()

    def _stalled(self) -> str:
        seconds = self.service.events.limits.stall_seconds
        reason = f"The connection took nothing for {seconds:g} seconds."
        who = self.request.remote_ip
        self.log.warning("A watcher of events at %s was dropped: %s", who, reason)
        return reason

    async def _end(self, dropped: str | None) -> None:
        """End the response; a client that was dropped may still read why."""
        connection = self.request.connection
        if dropped:
            self.write(f"event: dropped\ndata: {json.dumps({'reason': dropped})}\n\n")
        sent = self.finish(set_content_type="text/event-stream")
        patience = self.service.events.limits.stall_seconds
        await asyncio.wait({sent}, timeout=patience if dropped else 0.0)
        if not sent.done():
            connection.close()  # type: ignore[union-attr]


def _pieces(events: list[bytes]) -> Iterator[bytes]:
    """Small pieces of whole events: behind half of one, nothing could be said any more."""
    piece = bytearray()
    for event in events:
        piece += event
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


HANDLERS = [(r"/events", EventsHandler)]
