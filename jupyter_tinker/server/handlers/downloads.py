"""Files that are fetched by signed URLs: the SDK sends no headers with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jupyter_server.auth.decorator import allow_unauthenticated, authorized
from jupyter_server.utils import url_path_join
from sqlalchemy.exc import SQLAlchemyError
from tornado import web
from tornado.iostream import StreamClosedError

from ..checkpoints import UnknownCheckpoint
from ..legacy import Archive
from ..traces import KEPT_SECONDS
from .base import TinkerHandler, rfc3339
from .checkpoints import checkpoint_path

_URL_SECONDS = 3600
_CHUNK = 2**20
# For how long a request for a trace waits; the SDK asks again after five seconds.
_TRACE_PATIENCE = 20.0


class _SigningHandler(TinkerHandler):
    def signed_url(self, name: str, expires: int, *route: str) -> str:
        """The URL of `route` below the API, good for the file `name` until `expires`."""
        signature = self.service.signer.sign(name, expires)
        path = url_path_join(self.base_url, "tinker/api/v1", *map(quote, route))
        query = urlencode({"expires": expires, "signature": signature})
        return f"{self.request.protocol}://{self.request.host}{path}?{query}"


class _SignedHandler(TinkerHandler):
    """A file whose URL's signature stands in for a key."""

    async def prepare(self, **_: Any) -> None:
        if not self.check_host():
            raise web.HTTPError(403)

    def data_received(self, chunk: bytes) -> None:
        """A body has no meaning here and takes no memory."""

    def check_signature(self, name: str) -> None:
        expires = self.get_query_argument("expires", "")
        signature = self.get_query_argument("signature", "")
        if not self.service.signer.check(name, expires, signature):
            raise web.HTTPError(403, "This URL's signature is wrong or has expired; ask anew.")

    async def send_file(self, file: Path) -> None:
        with await asyncio.to_thread(file.open, "rb") as stream:
            size = (await asyncio.to_thread(file.stat)).st_size
            await self.send(size, iter(partial(stream.read, _CHUNK), b""))

    async def send(self, size: int, chunks: Iterator[bytes]) -> None:
        """Send `size` bytes, which reading may block for."""
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Length", str(size))
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            self.write(chunk)
            try:
                await self.flush()
            except StreamClosedError:
                return
        self.finish(set_content_type="application/octet-stream")


class ExternalUrlsHandler(_SigningHandler):
    """URLs that fetch the files of external weights without a key, for an hour."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str, name: str) -> None:
        path = checkpoint_path(run_id, "external_weights", name)
        await self.service.checkpoints.read(path, "download", by=self.username)
        files = await asyncio.to_thread(_files, self.service.checkpoints.folder(path))
        expires = int(time.time()) + _URL_SECONDS
        urls = {
            file: self.signed_url(f"{path}/{file}", expires, "external", run_id, name, file)
            for file in files
        }
        self.reply({"urls": urls, "expires": rfc3339(expires)})


class ExternalFileHandler(_SignedHandler):
    """One file of external weights."""

    @allow_unauthenticated
    async def get(self, run_id: str, name: str, file: str) -> None:
        path = checkpoint_path(run_id, "external_weights", name)
        self.check_signature(f"{path}/{file}")
        await self.service.checkpoints.get(path)
        folder = self.service.checkpoints.folder(path)
        if file not in await asyncio.to_thread(_files, folder):
            raise UnknownCheckpoint(f"There is no file {file!r} in {path}.")
        await self.send_file(folder / file)


class ArchiveUrlHandler(_SigningHandler):
    """A URL of all files of a checkpoint in one archive, as SDKs before external weights want."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str, kind: str, name: str) -> None:
        path = checkpoint_path(run_id, kind, name)
        await self.service.checkpoints.read(path, "download", by=self.username)
        expires = int(time.time()) + _URL_SECONDS
        url = self.signed_url(f"archive {path}", expires, "archives", run_id, kind, name)
        self.reply({"url": url, "expires": rfc3339(expires)})


class ArchiveHandler(_SignedHandler):
    @allow_unauthenticated
    async def get(self, run_id: str, kind: str, name: str) -> None:
        self.check_signature(f"archive tinker://{run_id}/{kind}/{name}")
        path = checkpoint_path(run_id, kind, name)
        await self.service.checkpoints.get(path)
        folder = self.service.checkpoints.folder(path)
        archive = await asyncio.to_thread(Archive.of, folder)
        await self.send(archive.size, archive.chunks())


class TraceExportHandler(_SigningHandler):
    """Writes a session's timeline; whoever asks again after "pending" hears how it went."""

    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        session = await self.service.sessions.get(session_id)
        try:
            ready = await self.service.traces.export(session.id, _TRACE_PATIENCE)
        except (OSError, SQLAlchemyError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:300]
            self.log.exception("The trace of session %s could not be written.", session.id)
            self.reply({"status": "failed", "error": f"The trace could not be written: {reason}"})
            return
        if not ready:
            self.reply({"status": "pending"})
            return
        expires = int(time.time() + min(_URL_SECONDS, KEPT_SECONDS))
        url = self.signed_url(f"trace {session.id}", expires, "traces", session.id)
        self.reply({"status": "ready", "url": url})


class TraceHandler(_SignedHandler):
    """A session's timeline, as Chrome trace events."""

    @allow_unauthenticated
    async def get(self, session_id: str) -> None:
        self.check_signature(f"trace {session_id}")
        try:
            await self.send_file(self.service.traces.file(session_id))
        except FileNotFoundError:
            raise web.HTTPError(404, "This trace is no longer kept; export it again.") from None


def _files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file())


_ID = r"([^/]+)"
HANDLERS = [
    (
        rf"/training_runs/{_ID}/checkpoints/external_weights/{_ID}/external_weights_urls",
        ExternalUrlsHandler,
    ),
    (rf"/external/{_ID}/{_ID}/{_ID}", ExternalFileHandler),
    (rf"/training_runs/{_ID}/checkpoints/{_ID}/{_ID}/archive", ArchiveUrlHandler),
    (rf"/archives/{_ID}/{_ID}/{_ID}", ArchiveHandler),
    (rf"/sessions/{_ID}/trace_export", TraceExportHandler),
    (rf"/traces/{_ID}", TraceHandler),
]
