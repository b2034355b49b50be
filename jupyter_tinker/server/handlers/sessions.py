"""The handshake, sessions and telemetry."""

from __future__ import annotations

import asyncio
import json

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire import tinker
from .base import TinkerHandler

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
        key = self.request.headers.get("X-Idempotency-Key")
        session_id = await self.service.create_session(body, self.username, key)
        self.reply({"session_id": session_id, "type": "create_session"})


class HeartbeatHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.SessionHeartbeat)
        session = await self.service.session(body.session_id)
        if session.finished_at is not None:
            raise web.HTTPError(410, f"Session {session.id} has ended.")
        self.reply({"type": "session_heartbeat"})


class FinishHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self, session_id: str) -> None:
        body = await self.parse(tinker.Finish)
        await self.service.finish_session(session_id, body)
        self.reply({})


class SessionsHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        limit = self.int_argument("limit", 20, 1000)
        offset = self.int_argument("offset", 0, 2**31)
        self.reply({"sessions": await self.service.journal.sessions(limit, offset)})


class SessionHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self, session_id: str) -> None:
        session = await self.service.session(session_id)
        runs, _ = await self.service.journal.runs(10_000, 0, session_id)
        samplers = await self.service.sampling.samplers.of_session(session_id)
        self.reply(
            {
                "training_run_ids": [run.id for run in runs],
                "sampler_ids": [sampler.id for sampler in samplers],
                "user_metadata": string_values(session.user_metadata),
                "display_name": session.display_name,
            }
        )


class TelemetryHandler(TinkerHandler):
    """Taken and dropped: nothing a client does here is reported to anyone."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self.reply({"status": "accepted"})


def string_values(metadata: dict[str, object] | None) -> dict[str, str] | None:
    """Metadata as the SDK reads it back: it takes any JSON in, and only strings out."""
    if metadata is None:
        return None
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
    }


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
    (rf"/sessions/{_ID}", SessionHandler),
    (rf"/sessions/{_ID}/finish", FinishHandler),
]
