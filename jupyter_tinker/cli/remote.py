"""What commands share that ask a running server."""

from __future__ import annotations

from jupyter_core.application import base_aliases
from traitlets import Unicode

from ..notebook.client import Client
from ..notebook.connection import connect
from ..notebook.runs import Run, resolve
from .base import Command

RUN = """RUN is a run's id, a beginning of it that no other id has, `latest`, or `latest~N` for the
    one that N newer ones came after."""


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

    def whole(self, text: str, what: str) -> int:
        """The number that an argument gives; else the command fails."""
        if text.isascii() and text.isdecimal() and len(text) < 10:
            return int(text)
        self.fail(f"{what} is a whole number, and not {text[:50]!r}")

    def number(self, text: str, what: str) -> float:
        try:
            return float(text)
        except ValueError:
            self.fail(f"{what} is a number, and not {text[:50]!r}")
