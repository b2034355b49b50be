"""Attaching to the engine's kernel: for people whom Jupyter itself let in, and may run code."""

from __future__ import annotations

from dataclasses import asdict

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized
from tornado import web

from ..attach import Attachable
from .base import TinkerHandler


class AttachHandler(TinkerHandler):
    """How to reach the engine as a kernel. GET starts nothing; POST starts it if need be."""

    async def prepare(self, **options: object) -> None:
        await super().prepare(**options)
        if self.key_name is not None:
            raise web.HTTPError(
                403,
                f"The key {self.key_name!r} opens the Tinker API, and not the kernels of this "
                "server; ask with the Jupyter server's token.",
            )
        user = self.current_user
        if user is None:  # OPTIONS
            return
        if not await ensure_async(self.authorizer.is_authorized(self, user, "execute", "kernels")):
            raise web.HTTPError(403, "You may not run code on the kernels of this server.")

    @web.authenticated
    @authorized
    async def get(self) -> None:
        self._tell(self.extension.attach.look())

    @web.authenticated
    @authorized
    async def post(self) -> None:
        self._tell(await self.extension.attach.start())

    def _tell(self, found: Attachable) -> None:
        file = found.connection_file
        command = None if file is None else f"jupyter console --existing {file}"
        self.set_header("Cache-Control", "no-store")
        self.reply({**asdict(found), "command": command})


HANDLERS = [(r"/engine/attach", AttachHandler)]
