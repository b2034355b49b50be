"""The handshake, sessions and telemetry."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire import tinker
from ..legacy import check_version
from ..session_index import NO_PROJECT, Found
from .base import TinkerHandler, rfc3339

# Samples in flight of a client that polls for each of them by a connection of its own.
_MAX_POLLS = 256


class HealthHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        self.reply({"status": "ok"})


class ClientConfigHandler(TinkerHandler):
    """Switches of the SDK; what is left out keeps its default."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        # One chunk after another: a refused chunk then leaves no hole that the SDK would wait for.
        # One poll for all samples of a client: else each of them would hold a connection.
        self.reply(
            {
                "parallel_fwdbwd_chunks": False,
                "custom_loss_server_side": True,
                "sample_use_retrieve_futures": True,
                "sample_join_sampling_session": True,
                "sample_max_concurrent_requests": _MAX_POLLS,
            }
        )


class DynamicConfigHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.reply({"sample_cancel_enabled": True})


class CapabilitiesHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        models = await asyncio.to_thread(self.service.catalog.models)
        supported = [
            {
                "model_name": model.name,
                "max_context_length": model.context_length,
                "trainable": True,
                "sampleable": True,
            }
            for model in models
        ]
        self.reply({"supported_models": supported})


class CreateSessionHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.CreateSession)
        check_version(body.sdk_version)
        key = self.request.headers.get("X-Idempotency-Key")
        session_id = await self.service.sessions.create(body, self.username, key)
        self.reply({"session_id": session_id, "type": "create_session"})


class HeartbeatHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.SessionHeartbeat)
        session = await self.service.sessions.get(body.session_id)
        if session.finished_at is not None:
            raise web.HTTPError(410, f"Session {session.id} has ended.")
        self.service.session_index.heard_of(session.id)
        self.reply({"type": "session_heartbeat"})


class FinishHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self, session_id: str) -> None:
        body = await self.parse(tinker.Finish)
        await self.service.sessions.finish(session_id, body)
        self.reply({})


class SessionsHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        limit = self.int_argument("limit", 20, 1000)
        offset = self.int_argument("offset", 0, 2**31)
        self.check_access_scope()
        self.reply({"sessions": await self.service.run_store.sessions(limit, offset)})


class SessionHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        self.check_access_scope()
        session = await self.service.sessions.get(session_id)
        runs, _ = await self.service.run_store.runs(10_000, 0, session_id)
        samplers = await self.service.sampling.samplers.of_session(session_id)
        self.reply(
            {
                "training_run_ids": [run.id for run in runs],
                "sampler_ids": [sampler.id for sampler in samplers],
                "user_metadata": tinker.string_values(session.user_metadata),
                "display_name": session.display_name,
            }
        )


class SearchHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        found, more = await self.service.session_index.search(
            await self.parse(tinker.SessionSearch)
        )
        last = found[-1].row if more else None
        self.reply(
            {
                "sessions": [_summary(session) for session in found],
                "next_cursor": last
                and {"last_created_at": rfc3339(last.created_at), "last_session_id": last.id},
            }
        )


def _summary(found: Found) -> dict[str, Any]:
    """A session as the SDK's `SessionSummary`."""
    row = found.row
    status: dict[str, Any] | None = {"type": "active"} if found.alive else None
    if row.finished_at is not None:
        reason = {"type": row.finish_reason}
        status = {"type": "client_finished", "reason": reason, "detail": row.finish_detail}
    return {
        "session_id": row.id,
        "created_at": rfc3339(row.created_at),
        "owner": row.owner,
        "project_id": row.project_id or NO_PROJECT,
        "status": status,
        "checkpoints_count": found.checkpoints,
        "checkpoint_storage_bytes": found.checkpoint_bytes,
        "display_name": row.display_name,
        "user_metadata": tinker.string_values(row.user_metadata),
    }


class ProjectHandler(TinkerHandler):
    """A project is a name that sessions are found by; whoever may ask may use any."""

    @web.authenticated
    @authorized
    async def put(self, session_id: str) -> None:
        body = await self.parse(tinker.ProjectUpdate)
        await self.service.sessions.get(session_id)
        index = self.service.session_index
        await index.assign(session_id, body.project_id, by=self.username)
        self.reply({})


class TelemetryHandler(TinkerHandler):
    """Taken and dropped: nothing a client does here is reported to anyone."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.reply({"status": "accepted"})


_ID = r"([^/]+)"
HANDLERS = [
    (r"/healthz", HealthHandler),
    (r"/client/config", ClientConfigHandler),
    (r"/client/dynamic_config", DynamicConfigHandler),
    (r"/get_server_capabilities", CapabilitiesHandler),
    (r"/create_session", CreateSessionHandler),
    (r"/session_heartbeat", HeartbeatHandler),
    (r"/telemetry", TelemetryHandler),
    (r"/sessions", SessionsHandler),
    (r"/sessions/search", SearchHandler),
    (rf"/sessions/{_ID}", SessionHandler),
    (rf"/sessions/{_ID}/project", ProjectHandler),
    (rf"/sessions/{_ID}/finish", FinishHandler),
]
