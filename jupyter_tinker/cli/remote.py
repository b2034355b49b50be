"""What commands share that ask a running server."""

from __future__ import annotations

from jupyter_core.application import base_aliases
from traitlets import Unicode

from ..notebook.client import Client
from ..notebook.connection import connect
from ..notebook.runs import Run, resolve
from .base import Command


class ServerCommand(Command):
    """A command that asks the server that --url names, else TINKER_BASE_URL, else the one that
    runs here."""

    url = Unicode(
        config=True,
        help="""The server, as in TINKER_BASE_URL, which is the default; else the one that runs
        here.""",
    )
    key = Unicode(
        config=True,
        help="""The key to it. TINKER_API_KEY, which is the default, is not seen by other users of
        this machine.""",
    )
    aliases = {  # noqa: RUF012 (traitlets' convention)
        **base_aliases,
        "url": "ServerCommand.url",
        "key": "ServerCommand.key",
    }

    def client(self, *, timeout: float = 30.0) -> Client:
        return connect(self.url or None, self.key or None, timeout=timeout)

    def run(self, name: str) -> Run:
        return resolve(self.client(), name)
