"""Keys over HTTP: made, listed and revoked by people whom Jupyter itself let in."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from jupyter_server.auth.decorator import authorized
from pydantic import BaseModel, ConfigDict, Field
from tornado import web

from .base import TinkerHandler


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(max_length=1000)]  # `Keys` says which names may be


class _OwnerHandler(TinkerHandler):
    """Opens to Jupyter's own token and cookie only: a key must not make others that outlive it."""

    async def prepare(self, **options: object) -> None:
        await super().prepare(**options)
        if self.key_name is not None:
            raise web.HTTPError(
                403,
                f"The key {self.key_name!r} opens the Tinker API and not the list of its keys; "
                "ask with the Jupyter server's token, or use `jupyter tinker key` beside it.",
            )


class KeysHandler(_OwnerHandler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        found = await asyncio.to_thread(self.service.keys.list)
        self.reply({"keys": [asdict(key) for key in found]})

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """The answer is the only one that ever holds the key."""
        body = await self.parse(NewKey)
        secret = await asyncio.to_thread(self.service.keys.create, body.name, by=self.username)
        self.set_header("Cache-Control", "no-store")
        self.reply({"name": body.name, "key": secret})


class KeyHandler(_OwnerHandler):
    @web.authenticated
    @authorized
    async def delete(self, name: str) -> None:
        await asyncio.to_thread(self.service.keys.revoke, name, by=self.username)
        self.reply({})


HANDLERS = [(r"/keys", KeysHandler), (r"/keys/([^/]+)", KeyHandler)]
