"""What `%tinker` does beside steering: finding servers, lists, keys, and the panel."""

from __future__ import annotations

import getpass
import os
import urllib.parse
from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import connection
from .client import Client
from .commands import Answer, Command, Misuse, whole
from .kernel import tag_sessions
from .progress import Progress
from .runs import Run, all_runs, resolve
from .tables import RunList, keys_table

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


class Session:
    """A notebook's server. The environment says which it is, so that the SDK has the same."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self.progress = Progress(shell, connection.find)

    def client(self) -> Client:
        """Raises `ConnectionFailed`."""
        return self._use(connection.connect())

    def connect(self, url: str, key: str) -> Client:
        """Use this server from now on, if it answers. Raises `ConnectionFailed`."""
        client = connection.connect(url, key)
        os.environ[connection.URL], os.environ[connection.KEY] = client.url, client.key
        tag_sessions()
        return self._use(client)

    def run(self, name: str) -> Run:
        """Raises `RequestFailed`."""
        return resolve(self.client(), name)

    def _use(self, client: Client) -> Client:
        self._shell.push({"tinker_server": client}, interactive=False)
        return client


class Status:
    """A server, its engine and its newest runs, as they were when they were asked for."""

    def __init__(self, client: Client, *, brief: bool = False) -> None:
        told = client.get("status")
        engine = told["status"]
        starting = told["engine"] == "starting"
        self.url = client.url
        self.engine: str = (
            engine["reason"]
            if engine
            else "the engine is starting"
            if starting
            else "the engine starts with the first run"
        )
        self.runs = RunList() if brief else all_runs(client)

    @property
    def _line(self) -> str:
        return f"Tinker at {self.url}: {self.engine}"

    def __repr__(self) -> str:
        return f"{self._line}\n\n{self.runs!r}" if self.runs else self._line

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._line)}</p>" + (self.runs._repr_html_() if self.runs else "")


def _connect(session: Session, arguments: Sequence[str]) -> Answer:
    match arguments:
        case [url]:
            client = session.connect(url, _key_to(url))
        case [url, key]:
            client = session.connect(url, key)
        case _:
            raise Misuse
    return Answer(str(Status(client, brief=True)))


def _key_to(url: str) -> str:
    """The key that the environment has for this server; another server's is not shown to it."""
    key = os.environ.get(connection.KEY)
    if key and os.environ.get(connection.URL) == url.rstrip("/"):
        return key
    try:
        return getpass.getpass(f"Key to {url}: ")
    except (EOFError, RuntimeError, OSError):  # nobody is there to ask
        raise Misuse(f"Give the key to {url}, too: %tinker connect URL KEY") from None


def _runs(session: Session, arguments: Sequence[str]) -> Answer:
    if arguments:
        raise Misuse
    found = all_runs(session.client())
    return Answer(repr(found), found)


def _key(session: Session, arguments: Sequence[str]) -> Answer:
    match arguments:
        case ["create", name]:
            made = session.client().post("keys", {"name": name})
            return Answer("This key is shown only now. Set it as TINKER_API_KEY.", made["key"])
        case ["list"]:
            table = keys_table(session.client().get("keys")["keys"])
            return Answer(repr(table), table)
        case ["revoke", name]:
            session.client().delete(f"keys/{urllib.parse.quote(name, safe='')}")
            return Answer(f"The key {name!r} opens nothing any more.")
        case _:
            raise Misuse


def _progress(session: Session, arguments: Sequence[str]) -> Answer:
    match arguments:
        case ["on"]:
            session.progress.start()
        case ["off"]:
            session.progress.stop()
        case []:
            pass
        case _:
            raise Misuse
    shown = "shown" if session.progress.on else "not shown"
    return Answer(f"What a waiting cell waits for is {shown}.")


def _panel(session: Session, arguments: Sequence[str]) -> Answer:
    try:
        panel: Any = import_module("jupyter_tinker.notebook.panel").Panel
        session.client()
        if len(arguments) < 2:
            return Answer("", panel(*[session.run(name).id for name in arguments]))
        widgets: Any = import_module("ipywidgets")
        runs = [session.run(name).id for name in arguments]
        return Answer("", widgets.VBox([panel(run) for run in runs]))
    except (ImportError, FileNotFoundError) as error:
        raise Misuse(f"There is no panel here: {error}") from None


def _tokens(session: Session, arguments: Sequence[str]) -> Answer:
    match arguments:
        case [name]:
            step = None
        case [name, text]:
            step = whole(text, "STEP")
        case _:
            raise Misuse
    shown = session.run(name).tokens(step)
    return Answer(repr(shown), shown)


OWN = {
    command.name: command
    for command in (
        Command(
            "connect",
            "connect URL [KEY]",
            "Use the server at this URL, as in TINKER_BASE_URL.",
            _connect,
            "Without a key it is asked for, and shown nowhere. The SDK uses that server, too.",
            ("connect http://localhost:8888/tinker",),
        ),
        Command("runs", "runs", "List training runs, newest first.", _runs),
        Command(
            "key",
            "key create NAME | key list | key revoke NAME",
            "Make, list and revoke keys that open the Tinker API and nothing else.",
            _key,
            """The server does it, wherever it is, for who holds Jupyter's token. The key is the
            value of `key create`, so `key = %tinker key create NAME` does not show it.""",
            ("key create laptop", "key list", "key revoke laptop"),
            words=(("create", "list", "revoke"),),
        ),
        Command(
            "panel",
            "panel [RUN ...]",
            "Show curves and controls of runs, live.",
            _panel,
            "Without a run it follows what starts; of several, one stands below the other.",
        ),
        Command(
            "tokens",
            "tokens RUN [STEP]",
            "Show the hardest sequences of a run's last batch, with tokens shaded by loss.",
            _tokens,
            "With a step those of its batch, if that is among the last that are kept.",
            ("tokens latest", "tokens latest 400"),
        ),
        Command(
            "progress",
            "progress [on|off]",
            "Show what the server is at, or not, while a cell waits for it.",
            _progress,
            """A bar in the output of a cell that has waited for two seconds: the engine starts, a
            model is loaded, a run is replayed. It goes when that is done.""",
            ("progress off",),
            words=(("on", "off"),),
        ),
    )
}
