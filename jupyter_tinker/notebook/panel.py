"""The panel: a widget that shows a run while it trains, and steers it.

It talks from the browser to the Jupyter server, so it works while the kernel is busy. The kernel's
part is its traits: what the panel shows, mirrored, and a way to steer from Python; and, where the
browser cannot reach that server, a relay.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
from traitlets import Bool, Float, Int, TraitError, Unicode, validate

from .client import Client, RequestFailed, run_path
from .connection import ConnectionFailed, connect, find
from .kernel import kernel_id, tag_of, tag_sessions
from .relay import Relay
from .runs import all_runs, resolve

_ESM = Path(__file__).parent / "static" / "panel.js"
# A server that is there answers in milliseconds; a cell waits for one that is not.
_PATIENCE = 3.0
_CONTROLS = ("learning_rate_scale", "learning_rate", "grad_clip_norm", "weight_decay", "paused")


class _Mirroring(threading.local):
    """Whether this thread tells traits what is, and asks for nothing."""

    on = False


class Panel(anywidget.AnyWidget):
    """A run's curves and controls, live.

    `run` is a run's id, or what `jupyter_tinker.run` takes for one; None follows whichever run of
    this kernel started last, or of all if the kernel has none that has not ended. The controls may
    be set from Python, too: `panel.learning_rate_scale = 0.5`, or `Panel(run, paused=True)`, asks
    the server, and raises `TraitError` with its sentence if it refuses. All other traits say what
    the panel shows, for as long as it is displayed; the kernel hears of changes between cells.
    Raises `RequestFailed` if there is no such run.
    """

    _esm = _ESM

    run = Unicode(None, allow_none=True, help="The run that is chosen; None: the newest.").tag(
        sync=True
    )
    learning_rate_scale = Float(1.0, help="Factor on the learning rate that is asked for.").tag(
        sync=True
    )
    learning_rate = Float(
        None, allow_none=True, help="Used whatever the client asks for; None: as it asks."
    ).tag(sync=True)
    grad_clip_norm = Float(
        None, allow_none=True, help="Global norm that gradients are clipped to; None: as asked."
    ).tag(sync=True)
    weight_decay = Float(
        None, allow_none=True, help="Used whatever the client asks for; None: as it asks."
    ).tag(sync=True)
    paused = Bool(False, help="Whether the run is paused.").tag(sync=True)

    current_run = Unicode("", help="The id of the run that is shown.").tag(sync=True)
    state = Unicode("", help="What that run does: see `Run.state`.").tag(sync=True)
    step = Int(0, help="Its newest optimizer step.").tag(sync=True)
    loss = Float(None, allow_none=True, help="Of that step, per unit of weight.").tag(sync=True)
    server_url = Unicode("", help="The server that has the runs.").tag(sync=True)
    server_id = Unicode("", help="By what a page knows whether it comes from that one.").tag(
        sync=True
    )
    kernel_id = Unicode("", help="The kernel whose runs go first, where none is chosen.").tag(
        sync=True
    )

    def __init__(self, run: str | None = None, **traits: Any) -> None:
        if not _ESM.exists():
            raise FileNotFoundError(
                f"{_ESM} is missing: this copy of jupyter_tinker was installed without its panel. "
                "Run `make panel` in its repository (needs Node.js)."
            )
        self._mirroring = _Mirroring()
        self._client = _found()
        if run is not None:
            self._client = connect()
            run = resolve(self._client, run).id
        tag_sessions()
        with self._told(True):
            super().__init__(run=run, kernel_id=kernel_id(), **_server(self._client), **traits)
        self._relay = Relay(self._connected, self.send, _when_idle())
        self.on_msg(lambda _, message, __: self._relay.hear(message))
        if wish := {name: getattr(self, name) for name in _CONTROLS if name in traits}:
            self._begin_with(wish)

    def _begin_with(self, wish: dict[str, Any]) -> None:
        """Ask for what the panel was made with. One that the server refuses is not left behind."""
        try:
            self._asked(lambda client: client.post(self._controls(client), wish))
        except TraitError:
            self.close()
            raise

    def close(self) -> None:
        """Take the panel away, wherever it is shown."""
        self._relay.close()
        super().close()

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """What the browser says of the run; it is not sent to the server again."""
        with self._told(True):
            super().set_state(sync_data)

    def notify_change(self, change: Any) -> None:
        """Call observers. They run amid `set_state`, and what they set is meant for the server."""
        with self._told(False):
            super().notify_change(change)

    @contextmanager
    def _told(self, on: bool) -> Iterator[None]:
        """Traits that are set in here, by this thread, are told (or are asked for again)."""
        before, self._mirroring.on = self._mirroring.on, on
        try:
            yield
        finally:
            self._mirroring.on = before

    @validate("run")
    def _known_run(self, proposal: Any) -> str | None:
        run: str | None = proposal["value"]
        if self._mirroring.on or run is None:
            return run
        return self._asked(lambda client: resolve(client, run).id)

    @validate(*_CONTROLS)
    def _steer(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if not self._mirroring.on:
            self._asked(lambda client: client.post(self._controls(client), {name: value}))
        return value

    def _controls(self, client: Client) -> str:
        run = self.run or self.current_run or self._followed(client)
        return f"{run_path(run)}/controls"

    def _followed(self, client: Client) -> str:
        """The run that the browser will show, before it has said so."""
        own = tag_of(self.kernel_id)
        for run in all_runs(client) if self.kernel_id else []:
            if own in run.known["session_tags"] and run.known["ended"] is None:
                return run.id
        return resolve(client, "latest").id

    def _asked(self, question: Any) -> Any:
        try:
            return question(self._connected())
        except RequestFailed as error:
            raise TraitError(str(error)) from None

    def _connected(self) -> Client:
        """The panel's server, which stays the same. Raises `RequestFailed`."""
        if self._client is None:
            self._client = connect()
            self.set_trait("server_url", self._client.url)
            self.set_trait("server_id", _server(self._client)["server_id"])
        return self._client


def _found() -> Client | None:
    try:
        return find()
    except ConnectionFailed:
        return None


def _server(client: Client | None) -> dict[str, str]:
    """What a page must know of a server to find out whether it comes from it."""
    if client is None:
        return {"server_url": "", "server_id": ""}
    try:
        known = str(client.get("status", timeout=_PATIENCE).get("server_id", ""))
    except RequestFailed:
        known = ""  # asked through the kernel, then
    return {"server_url": client.url, "server_id": known}


def _when_idle() -> Any:
    """Calls back in the thread that runs cells, while it runs none; None outside of a kernel."""
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        return None
