"""Passes on what a panel asks of a server, and what happens there, where the panel's page cannot
reach that server itself.

Knows nothing of widgets: it hears and sends messages, as `labextension/src/panel/comm.ts` has them.
All work is done in threads of its own, so that it goes on beside a cell; the key stays here.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .client import LONG, Client, RequestFailed, run_path
from .relay_stream import RelayStream

Message = dict[str, Any]
Send = Callable[[Message, list[bytes]], None]

# What may be asked: our own routes that tell of runs, and those that steer one.
_ASKED = {
    "GET": re.compile(r"status|runs(/[^/]+(/[a-z0-9_-]+)*)?"),
    "POST": re.compile(r"runs/[^/]+/(controls|rewind|fork|lr_find|preview)"),
    "PUT": re.compile(r"runs/[^/]+/preview"),
    "DELETE": re.compile(r"runs/[^/]+/lr_find"),
}
_PATH = re.compile(r"[\w.~:%/-]+(\?[\w.~:%=&-]*)?", re.ASCII)
_LARGEST_BODY = 2**16
_PATIENCE = 30.0  # seconds, for what changes nothing
_MOST_QUESTIONS = 16  # at a time
# A page of the server's own size would be some megabytes in one message.
_PAGE = 2000
# Without a word from any page, in seconds in which the kernel could have heard one.
_SILENCE = 90.0
_SHOWN_RUNS = 6


def allowed(method: str, path: str) -> bool:
    """Whether a page may ask this of the server through the kernel."""
    where = path.partition("?")[0]
    parts = [urllib.parse.unquote(part) for part in where.split("/")]
    if _PATH.fullmatch(path) is None or any(part in (".", "..") or "/" in part for part in parts):
        return False
    return method in _ASKED and _ASKED[method].fullmatch(where) is not None


class Relay:
    """Between pages that show one widget, and a server.

    `find` gives the server, or raises `RequestFailed`; `when_idle` calls back in the kernel's own
    thread, which it can only while no cell runs there (None: such a thread is not known).
    """

    def __init__(
        self,
        find: Callable[[], Client],
        send: Send,
        when_idle: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._find = find
        self._send = send
        self._when_idle = when_idle
        self._lock = threading.RLock()
        self._questions = threading.BoundedSemaphore(_MOST_QUESTIONS)
        self._pages: set[str] = set()  # those that follow
        self._stream: RelayStream | None = None
        self._active: deque[str] = deque(maxlen=_SHOWN_RUNS)  # runs of which something was told
        self._silence = 0.0
        self._asking_idle = False
        self._closed = False

    def hear(self, message: Any) -> None:
        """Do what a page's message says, without waiting for it. What is no message is ignored."""
        if not isinstance(message, dict) or not isinstance(page := message.get("page"), str):
            return
        self._silence = 0.0
        match message:
            case {"kind": "ask"}:
                if not self._begin(lambda: self._answer(message)):
                    busy = f"{_MOST_QUESTIONS} questions to the server are not answered yet."
                    self._reply(message, 503, _refusal(busy))
            case {"kind": "follow", "after": int(after)}:
                self._begin(lambda: self._follow(page, after))
            case {"kind": "bye"}:
                self._leave(page)

    def close(self) -> None:
        """Let go of the server. What is asked afterwards is not answered."""
        with self._lock:
            self._closed = True
            self._end_stream()

    # Questions

    def _begin(self, work: Callable[[], None]) -> bool:
        """In a thread: a rewind may take minutes, and the next cell need not wait for it. Whether
        there was room for one more."""
        begun = self._questions.acquire(blocking=False)
        if begun:
            threading.Thread(target=self._work, args=(work,), daemon=True).start()
        return begun

    def _work(self, work: Callable[[], None]) -> None:
        try:
            # What fails here would be printed into a cell.
            with suppress(Exception):
                work()
        finally:
            self._questions.release()

    def _answer(self, message: Message) -> None:
        method, path = str(message.get("method")), str(message.get("path"))
        self._reply(message, *self._asked(method, path, message.get("body")))

    def _reply(self, message: Message, status: int | None, body: bytes) -> None:
        about = {name: message.get(name) for name in ("page", "number", "path")}
        self._tell({"kind": "answer", "status": status, **about}, body)

    def _asked(self, method: str, path: str, body: Any) -> tuple[int | None, bytes]:
        """HTTP's status and the JSON of an answer; without a status there was none."""
        sent = body if method != "GET" and isinstance(body, dict) else None
        if not allowed(method, path) or len(json.dumps(sent)) > _LARGEST_BODY:
            return 403, _refusal(f"A panel does not ask for {method} {path[:100]} by the kernel.")
        try:
            patience = _PATIENCE if method == "GET" else LONG
            client, where = self._find(), _bounded(path)
            with client.open(where, sent, method=method, timeout=patience) as answer:
                return answer.status, answer.read()
        except RequestFailed as error:
            return error.status, _refusal(str(error))
        except (OSError, ValueError) as error:
            return None, _refusal(f"The answer broke off: {error}")

    def _push(self, path: str) -> bytes | None:
        """Tell all pages what the server says at `path`, as if they had asked: while a cell runs
        they may not be heard."""
        status, body = self._asked("GET", path, None)
        if status != 200:
            return None
        self._tell({"kind": "answer", "status": status, "path": path}, body)
        return body

    def _push_history(self, run: str) -> None:
        path = run_path(run)
        self._push(path)
        for what in ("steps", "events"):
            after = 0
            while body := self._push(f"{path}/{what}?after={after}"):
                rows = json.loads(body)[what]
                if not rows:
                    break
                after = rows[-1]["id"]

    # The stream

    def _follow(self, page: str, after: int) -> None:
        try:
            client = self._find()
        except RequestFailed as error:
            return self.on_state(False, str(error))
        with self._lock:
            if self._closed:
                return
            stream, known = self._stream, page in self._pages
            self._pages.add(page)
            if stream is None or (not known and after < stream.position):
                self._end_stream()
                self._stream = RelayStream(client, after, self)
                self._stream.start()
            elif not known and stream.connected:
                self.on_state(True, None)

    def _leave(self, page: str) -> None:
        with self._lock:
            self._pages.discard(page)
            if not self._pages:
                self._end_stream()

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.end()
        self._stream = None
        self._pages = set()

    def on_state(self, connected: bool, problem: str | None) -> None:
        self._tell({"kind": "state", "connected": connected, "problem": problem})

    def on_events(self, behind: int, events: list[dict[str, Any]]) -> None:
        """`behind`: the id of the last event before these, so that a page sees if it lacks some."""
        self._tell({"kind": "events", "behind": behind}, json.dumps(events).encode())
        for run in dict.fromkeys(event["run_id"] for event in events):
            if run is not None and run not in self._active:
                self._active.append(run)
        created = [event["run_id"] for event in events if event["kind"] == "run_created"]
        if created:
            self._push("runs?limit=1000")
            self._push_history(created[-1])

    def on_progress(self, event: dict[str, Any]) -> None:
        """How far something is that takes long, or that it is over."""
        self._tell({"kind": "progress"}, json.dumps(event).encode())

    def on_beat(self, seconds: float) -> None:
        """Called every few seconds of a stream."""
        with self._lock:
            active, self._active = self._active, deque(maxlen=_SHOWN_RUNS)
        for run in active:
            self._push(run_path(run))
        if self._when_idle is None:
            self._was_idle(seconds)
        elif not self._asking_idle:
            self._asking_idle = True
            try:
                self._when_idle(lambda: self._was_idle(seconds))
            except RuntimeError:  # that thread has ended
                self._was_idle(seconds)

    def _was_idle(self, seconds: float) -> None:
        """A page that is gone does not always say so."""
        self._asking_idle = False
        self._silence += seconds
        if self._silence > _SILENCE:
            with self._lock:
                self._end_stream()

    def _tell(self, message: Message, body: bytes = b"") -> None:
        if not self._closed:
            self._send(message, [zlib.compress(body, 1)] if body else [])


def _refusal(sentence: str) -> bytes:
    return json.dumps({"detail": sentence}).encode()


def _bounded(path: str) -> str:
    """Pages are short enough for one message."""
    where, _, query = path.partition("?")
    if where.rpartition("/")[2] not in ("steps", "events") or "limit=" in query:
        return path
    return f"{where}?{query}&limit={_PAGE}" if query else f"{where}?limit={_PAGE}"
