"""Listing runs and checkpoints, and what may be done with a checkpoint; its files: downloads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire import tinker
from ..checkpoints import CheckpointPath, parse_path, path_of
from ..legacy import listed_kinds
from ..schema import CheckpointRow, RunRow
from .base import TinkerHandler, rfc3339

_TYPES = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_LONGEST_PAGE = 10_000


def checkpoint_json(row: CheckpointRow) -> dict[str, Any]:
    """A checkpoint as the SDK's `Checkpoint`."""
    path = path_of(row)
    return {
        "checkpoint_id": f"{path.kind}/{path.name}",
        "checkpoint_type": _TYPES[path.kind],
        "time": rfc3339(row.created_at),
        "tinker_path": str(path),
        "size_bytes": row.size_bytes,
        "public": row.public,
        "user_metadata": row.user_metadata,
        "expires_at": None if row.expires_at is None else rfc3339(row.expires_at),
    }


class _RunReader(TinkerHandler):
    async def runs_json(self, rows: Sequence[RunRow]) -> list[dict[str, Any]]:
        """Runs as the SDK's `TrainingRun`."""
        newest = await self.service.checkpoints.newest([row.id for row in rows])
        saved = {place: checkpoint_json(row) for place, row in newest.items()}
        return [
            {
                "training_run_id": row.id,
                "base_model": row.base_model,
                "model_owner": row.owner,
                "is_lora": True,
                "corrupted": False,
                "lora_rank": row.lora["rank"],
                "last_request_time": rfc3339(row.last_request_at),
                "last_checkpoint": saved.get((row.id, "weights")),
                "last_sampler_checkpoint": saved.get((row.id, "sampler_weights")),
                "user_metadata": tinker.string_values(row.user_metadata),
            }
            for row in rows
        ]


class TrainingRunsHandler(_RunReader):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.check_access_scope()
        limit = self.int_argument("limit", 20, 1000)
        offset = self.int_argument("offset", 0, 2**31)
        project = self.get_query_argument("project_id", None)
        rows, total = await self.service.run_store.runs(limit, offset, project_id=project)
        self.reply(
            {
                "training_runs": await self.runs_json(rows),
                "cursor": {"offset": offset, "limit": limit, "total_count": total},
            }
        )


class TrainingRunHandler(_RunReader):
    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        self.check_access_scope()
        run = await self.service.run(run_id)
        row = await self.service.run_store.run(run_id)
        self.reply((await self.runs_json([row or run.row]))[0])


class CheckpointsHandler(TinkerHandler):
    """A page of all checkpoints, or those of one run, which the SDK takes for all there are."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str | None = None) -> None:
        if run_id is not None:
            await self.service.run(run_id)
        usual = 100 if run_id is None else _LONGEST_PAGE
        limit = self.int_argument("limit", usual, _LONGEST_PAGE)
        offset = self.int_argument("offset", 0, 2**31)
        kinds = listed_kinds(self.request.headers.get("X-Stainless-Package-Version", ""))
        rows, total = await self.service.checkpoints.list(
            run_id=run_id, kinds=kinds, limit=limit, offset=offset
        )
        self.reply(
            {
                "checkpoints": [checkpoint_json(row) for row in rows],
                "cursor": {"offset": offset, "limit": limit, "total_count": total},
            }
        )


def checkpoint_path(run_id: str, kind: str, name: str) -> CheckpointPath:
    return parse_path(f"tinker://{run_id}/{kind}/{name}")


class CheckpointHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def delete(self, run_id: str, kind: str, name: str) -> None:
        await self.service.checkpoints.delete(checkpoint_path(run_id, kind, name), by=self.username)
        self.reply({})


class PublishHandler(TinkerHandler):
    """A mark that listings show. What is marked already stays so without complaint: the SDK would
    try a conflict again for minutes."""

    @web.authenticated
    @authorized
    async def post(self, run_id: str, kind: str, name: str) -> None:
        await self._mark(checkpoint_path(run_id, kind, name), public=True)

    @web.authenticated
    @authorized
    async def delete(self, run_id: str, kind: str, name: str) -> None:
        await self._mark(checkpoint_path(run_id, kind, name), public=False)

    async def _mark(self, path: CheckpointPath, *, public: bool) -> None:
        await self.service.checkpoints.publish(path, public, by=self.username)
        self.reply({})


class TtlHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def put(self, run_id: str, kind: str, name: str) -> None:
        ttl = (await self.parse(tinker.TtlUpdate)).ttl_seconds
        expires = None if ttl is None else time.time() + ttl
        path = checkpoint_path(run_id, kind, name)
        await self.service.checkpoints.expire(path, expires, by=self.username)
        self.reply({})


class WeightsInfoHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.TinkerPath)
        row = await self.service.saving.describe(body.tinker_path)
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


class CopyWeightsHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.CopyWeights)
        key = self.request.headers.get("X-Idempotency-Key")
        path = await self.service.copy_weights(body, self.username, key)
        self.reply({"tinker_path": path})


_RUN = r"([^/]+)"
_SAVED = rf"/training_runs/{_RUN}/checkpoints/([^/]+)/([^/]+)"
HANDLERS = [
    (r"/training_runs", TrainingRunsHandler),
    (rf"/training_runs/{_RUN}", TrainingRunHandler),
    (rf"/training_runs/{_RUN}/checkpoints", CheckpointsHandler),
    (r"/checkpoints", CheckpointsHandler),
    (_SAVED, CheckpointHandler),
    (rf"{_SAVED}/publish", PublishHandler),
    (rf"{_SAVED}/ttl", TtlHandler),
    (r"/weights_info", WeightsInfoHandler),
    (r"/copy_weights", CopyWeightsHandler),
]
