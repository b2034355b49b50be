"""Shows what the server is at, in the output of a cell that has been waiting for it for a while.

A thread lives as long as the cell that it watches. It asks the server nothing before a call of the
SDK has waited for two seconds, and shows nothing but work that the server says takes long.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from html import escape
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from ..wire.progress import in_words
from .client import Client, RequestFailed
from .waiting import call_of

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 2.0
_ASK_SECONDS = 5.0  # for which an answer is waited


class Bar(Protocol):
    """One line in the output of a cell."""

    def show(self, told: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Progress:
    """Watches the cells of a shell; `find` gives the server, and may raise `RequestFailed`."""

    def __init__(self, shell: InteractiveShell, find: Callable[[], Client]) -> None:
        self.on = False
        self._shell = shell
        self._find = find
        self._cell: Cell | None = None

    def start(self) -> None:
        """Watch from now on, the cell that runs included."""
        if not self.on:
            self.on = True
            self._shell.events.register("pre_run_cell", self._begin)
            self._shell.events.register("post_run_cell", self._end)
            self._begin()

    def stop(self) -> None:
        if self.on:
            self.on = False
            self._shell.events.unregister("pre_run_cell", self._begin)
            self._shell.events.unregister("post_run_cell", self._end)
            self._end()

    def _begin(self, *_: Any) -> None:
        self._end()
        make = NotebookBar if hasattr(self._shell, "kernel") else TerminalBar
        self._cell = Cell(make, self._find)
        self._cell.start()

    def _end(self, *_: Any) -> None:
        if self._cell is not None:
            self._cell.end()
            self._cell = None


class Cell:
    """The watch over one run of a cell. Made in the thread that runs it."""

    def __init__(self, make_bar: Callable[[], Bar], find: Callable[[], Client]) -> None:
        self._make_bar = make_bar
        self._find = find
        self._bar: Bar | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()  # what is shown comes before the end or not at all
        self._runs_in = threading.get_ident()
        # The context says which cell the output belongs to.
        run = copy_context().run
        self._thread = threading.Thread(
            target=run, args=(self._watch,), name="tinker-progress", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """The cell is over; what was shown goes."""
        with self._lock:
            self._over.set()
            self._close()

    def _watch(self) -> None:
        call: FrameType | None = None
        since = 0.0
        while not self._over.wait(_LOOK_SECONDS):
            before, call = call, call_of(self._runs_in)
            if call is None or call is not before:
                since = time.monotonic()
            waits = call is not None and time.monotonic() - since >= _PATIENCE_SECONDS
            told = self._ask() if waits else None
            with self._lock:
                if not self._over.is_set():
                    self._show(told)

    def _ask(self) -> dict[str, Any] | None:
        try:
            return foremost(self._find().get("status", timeout=_ASK_SECONDS).get("progress", ()))
        except RequestFailed:
            return None

    def _show(self, told: dict[str, Any] | None) -> None:
        if told is None:
            self._close()
            return
        if self._bar is None:
            self._bar = self._make_bar()
        self._bar.show(told)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def foremost(tasks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of several tasks the newest whose length is known, else the newest."""
    known = [task for task in tasks if task["total"]]
    return next(reversed(known or [*tasks]), None)


class NotebookBar:
    """In a notebook's output: a display of its own, which any front end can show, without a widget
    whose kernel side could be busy."""

    def __init__(self) -> None:
        self._id = uuid4().hex
        self._shown = False
        self._last: tuple[str, str] | None = None

    def show(self, told: dict[str, Any]) -> None:
        words = in_words(told)
        value = f' value="{told["done"]}" max="{told["total"]}"' if told["total"] else ""
        bar = f'<progress{value} aria-label="{escape(told["what"])}"></progress>'
        self._display(f"<span>{bar} {escape(words)}</span>", words)

    def close(self) -> None:
        self._display("", "")

    def _display(self, html: str, text: str) -> None:
        from IPython.display import display

        if self._last != (html, text):
            self._last = (html, text)
            bundle = {"text/html": html, "text/plain": text}
            display(bundle, raw=True, display_id=self._id, update=self._shown)
            self._shown = True


class TerminalBar:
    """In a terminal, on standard error; nowhere else, where it would be a heap of lines."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            bar_format="{desc} |{bar:30}| {elapsed}",
            total=0,
            leave=False,
            disable=None,  # where it is no terminal
            file=sys.stderr,
        )

    def show(self, told: dict[str, Any]) -> None:
        self._bar.total, self._bar.n = told["total"] or 0, told["done"]
        self._bar.set_description_str(in_words(told))

    def close(self) -> None:
        self._bar.close()
