"""What the SDK asks of an account: its key, its audit log, its bills. There is nothing to pay."""

from __future__ import annotations

import asyncio
import platform
from datetime import UTC, date, datetime, timedelta

from jupyter_server.auth.decorator import authorized
from tornado import web

from .. import keys
from ..audit import RESOURCES
from .base import TinkerHandler, rfc3339

_GIGABYTE = 1e9
_LONGEST_WINDOW = timedelta(days=14)


class AuthTokenHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        raise web.HTTPError(
            400, "This server issues no JWTs; go on sending your API key as X-API-Key."
        )


class ApiKeyHandler(TinkerHandler):
    """The key that the request itself was sent with."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        own = self.key_name is not None
        note = "" if own else "The token of the Jupyter server, which opens all of it."
        self.reply(
            {
                "key_id": keys.number(self.request.headers["X-API-Key"]) if own else 0,
                "name": self.key_name or "jupyter-token",
                "note": note,
                "details": {
                    "org_details": {"name": f"Jupyter server on {platform.node()}"},
                    "user_details": {"email": self.username},
                },
            }
        )

    @web.authenticated
    @authorized
    async def delete(self) -> None:
        name = self.key_name
        if name is None:
            raise web.HTTPError(
                403,
                "This is the token of the Jupyter server, which only its configuration can "
                "change; keys of `jupyter tinker key create NAME` can be deleted.",
            )
        await asyncio.to_thread(self.service.keys.revoke, name, by=self.username)
        self.reply({})


class AuditHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        resource = self.get_query_argument("event_type", "all")
        if resource not in RESOURCES:
            raise web.HTTPError(
                400, f"event_type must be one of {', '.join(RESOURCES)}, and is {resource[:50]!r}."
            )
        rows = await self.service.audit.entries(resource, self._day())
        self.reply(
            {
                "entries": [
                    {
                        "timestamp": rfc3339(row.time),
                        "event": row.event,
                        "event_details": {"actor": row.actor, **row.details},
                        "tinker_path": row.details.get("tinker_path"),
                        "purpose": row.details.get("purpose"),
                    }
                    for row in rows
                ]
            }
        )

    def _day(self) -> date:
        text = self.get_query_argument("day", None)
        if text is None:
            return datetime.now(UTC).date()
        try:
            return date.fromisoformat(text)
        except ValueError:
            raise web.HTTPError(
                400, f"day must be a date such as 2026-01-31, and is {text[:50]!r}."
            ) from None


class BillingUsageHandler(TinkerHandler):
    """No usage is billed."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        start, end = self._time("starting_on"), self._time("ending_before")
        if not timedelta(0) < end - start <= _LONGEST_WINDOW:
            raise web.HTTPError(
                400, "ending_before must lie after starting_on, by 14 days at most."
            )
        self.reply({"data": [], "sessions": {}, "cost_data_through": None})

    def _time(self, name: str) -> datetime:
        text = self.get_query_argument(name, "")
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise web.HTTPError(
                400, f"{name} must be a time such as 2026-01-31T00:00:00Z, and is {text[:50]!r}."
            ) from None
        return when if when.tzinfo else when.replace(tzinfo=UTC)


class CheckpointStorageHandler(TinkerHandler):
    """What checkpoints take on the disk, which costs nothing here."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        project = self.get_query_argument("project_id", None)
        stored = await asyncio.to_thread(self.service.session_index.storage, project)
        self.reply(
            {
                "effective_rate_usd_per_gigabyte_month": 0.0,
                "data": [
                    {
                        "project_id": item.project_id,
                        "org_user_urn": item.owner,
                        "checkpoint_count": item.checkpoints,
                        "size_bytes": item.size_bytes,
                        "size_gigabytes": item.size_bytes / _GIGABYTE,
                        "estimated_monthly_cost_usd": 0.0,
                    }
                    for item in stored
                ],
            }
        )


HANDLERS = [
    (r"/auth/token", AuthTokenHandler),
    (r"/auth/apikey/me", ApiKeyHandler),
    (r"/audit", AuditHandler),
    (r"/billing/usage/events", BillingUsageHandler),
    (r"/billing/usage/checkpoints/current", CheckpointStorageHandler),
]
