"""Listing runs and checkpoints, and what may be done with a checkpoint."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jupyter_server.auth.decorator import allow_unauthenticated, authorized
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.iostream import StreamClosedError

from ...wire import tinker
from ..checkpoints import CheckpointPath, UnknownCheckpoint, parse_path, path_of
from ..schema import CheckpointRow, RunRow
from .base import TinkerHandler
from .sessions import string_values

_TYPES = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_URL_SECONDS = 3600
_CHUNK = 2**20


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def checkpoint_json(row: CheckpointRow) -> dict[str, Any]:
    """A checkpoint as the SDK's `Checkpoint`."""
    path = path_of(row)
    return {
        "checkpoint_id": f"{path.kind}/{path.name}",
        "checkpoint_type": _TYPES[path.kind],
        "time": _when(row.created_at),
        "tinker_path": str(path),
        "size_bytes": row.size_bytes,
        "public": row.public,
        "user_metadata": row.user_metadata,
        "expires_at": None if row.expires_at is None else _when(row.expires_at),
    }


class _RunReader(TinkerHandler):
    async def run_json(self, row: RunRow) -> dict[str, Any]:
        """A run as the SDK's `TrainingRun`."""
        saved, _ = await self.service.checkpoints.list(run_id=row.id)
        newest = {kind: next((c for c in saved if c.kind == kind), None) for kind in _TYPES}
        training, sampler = newest["weights"], newest["sampler_weights"]
        return {
            "training_run_id": row.id,
            "base_model": row.base_model,
            "model_owner": row.owner,
            "is_lora": True,
            "corrupted": False,
            "lora_rank": row.lora["rank"],
            "last_request_time": _when(row.last_request_at),
            "last_checkpoint": training and checkpoint_json(training),
            "last_sampler_checkpoint": sampler and checkpoint_json(sampler),
            "user_metadata": string_values(row.user_metadata),
        }


class TrainingRunsHandler(_RunReader):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        limit = self.int_argument("limit", 20, 1000)
        offset = self.int_argument("offset", 0, 2**31)
        rows, total = await self.service.journal.runs(limit, offset)
        self.reply(
            {
                "training_runs": [await self.run_json(row) for row in rows],
                "cursor": {"offset": offset, "limit": limit, "total_count": total},
            }
        )


class TrainingRunHandler(_RunReader):
    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        run = await self.service.run(run_id)
        row = await self.service.journal.run(run_id)
        self.reply(await self.run_json(row or run.row))


class CheckpointsHandler(TinkerHandler):
    """The checkpoints of one run, or of all."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str | None = None) -> None:
        if run_id is not None:
            await self.service.run(run_id)
        limit = self.int_argument("limit", 100, 10_000)
        offset = self.int_argument("offset", 0, 2**31)
        rows, total = await self.service.checkpoints.list(run_id=run_id, limit=limit, offset=offset)
        self.reply(
            {
                "checkpoints": [checkpoint_json(row) for row in rows],
                "cursor": {"offset": offset, "limit": limit, "total_count": total},
            }
        )


def _path(run_id: str, kind: str, name: str) -> CheckpointPath:
    return parse_path(f"tinker://{run_id}/{kind}/{name}")


class CheckpointHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def delete(self, run_id: str, kind: str, name: str) -> None:
        await self.service.checkpoints.delete(_path(run_id, kind, name))
        self.reply({})


class PublishHandler(TinkerHandler):
    """A mark that listings show. What is marked already stays so without complaint: the SDK would
    try a conflict again for minutes."""

    @web.authenticated
    @authorized
    async def post(self, run_id: str, kind: str, name: str) -> None:
        await self.service.checkpoints.update(_path(run_id, kind, name), public=True)
        self.reply({})

    @web.authenticated
    @authorized
    async def delete(self, run_id: str, kind: str, name: str) -> None:
        await self.service.checkpoints.update(_path(run_id, kind, name), public=False)
        self.reply({})


class TtlHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def put(self, run_id: str, kind: str, name: str) -> None:
        ttl = (await self.parse(tinker.TtlUpdate)).ttl_seconds
        expires = None if ttl is None else time.time() + ttl
        await self.service.checkpoints.update(_path(run_id, kind, name), expires_at=expires)
        self.reply({})


class WeightsInfoHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.TinkerPath)
        row = await self.service.checkpoints.get(parse_path(body.tinker_path))
        flags = ("train_unembed", "train_mlp", "train_attn")
        self.reply(
            {
                "base_model": row.base_model,
                "is_lora": True,
                "lora_rank": row.lora["rank"],
                **{flag: row.lora[flag] for flag in flags},
                "optimizer_config": {"type": "adamw"},
            }
        )


class ExternalUrlsHandler(TinkerHandler):
    """URLs that fetch the files of external weights without a key, for an hour."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str, name: str) -> None:
        path = _path(run_id, "external_weights", name)
        await self.service.checkpoints.get(path)
        files = await asyncio.to_thread(_files, self.service.checkpoints.folder(path))
        expires = int(time.time()) + _URL_SECONDS
        self.reply(
            {
                "urls": {file: self._url(path, file, expires) for file in files},
                "expires": _when(expires),
            }
        )

    def _url(self, path: CheckpointPath, file: str, expires: int) -> str:
        signature = self.service.signer.sign(f"{path}/{file}", expires)
        route = url_path_join(
            self.base_url, "tinker/api/v1/external", *map(quote, (path.run_id, path.name, file))
        )
        query = urlencode({"expires": expires, "signature": signature})
        return f"{self.request.protocol}://{self.request.host}{route}?{query}"


class ExternalFileHandler(TinkerHandler):
    """One file of external weights. Its URL's signature stands in for a key."""

    async def prepare(self, **_: Any) -> None:
        if not self.check_host():
            raise web.HTTPError(403)

    def data_received(self, chunk: bytes) -> None:
        """A body has no meaning here and takes no memory."""

    @allow_unauthenticated
    async def get(self, run_id: str, name: str, file: str) -> None:
        path = _path(run_id, "external_weights", name)
        expires = self.get_query_argument("expires", "")
        signature = self.get_query_argument("signature", "")
        if not self.service.signer.check(f"{path}/{file}", expires, signature):
            raise web.HTTPError(403, "This URL's signature is wrong or has expired; ask anew.")
        await self.service.checkpoints.get(path)
        folder = self.service.checkpoints.folder(path)
        if file not in await asyncio.to_thread(_files, folder):
            raise UnknownCheckpoint(f"There is no file {file!r} in {path}.")
        await self._send(folder / file)

    async def _send(self, file: Path) -> None:
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("Content-Length", str((await asyncio.to_thread(file.stat)).st_size))
        with await asyncio.to_thread(file.open, "rb") as stream:
            while chunk := await asyncio.to_thread(stream.read, _CHUNK):
                self.write(chunk)
                try:
                    await self.flush()
                except StreamClosedError:
                    return
        self.finish(set_content_type="application/octet-stream")


def _files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file())


_RUN = r"([^/]+)"
_SAVED = rf"/training_runs/{_RUN}/checkpoints/([^/]+)/([^/]+)"
HANDLERS = [
    (r"/training_runs", TrainingRunsHandler),
    (rf"/training_runs/{_RUN}", TrainingRunHandler),
    (rf"/training_runs/{_RUN}/checkpoints", CheckpointsHandler),
    (r"/checkpoints", CheckpointsHandler),
    (
        rf"/training_runs/{_RUN}/checkpoints/external_weights/([^/]+)/external_weights_urls",
        ExternalUrlsHandler,
    ),
    (_SAVED, CheckpointHandler),
    (rf"{_SAVED}/publish", PublishHandler),
    (rf"{_SAVED}/ttl", TtlHandler),
    (r"/weights_info", WeightsInfoHandler),
    (rf"/external/{_RUN}/([^/]+)/([^/]+)", ExternalFileHandler),
]
