"""Follows a server's events in threads, and hands them on in batches."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from typing import Any, Protocol

from .client import Client, RequestFailed
from .follow import open_stream, parse

_GAP = 0.1  # seconds between two batches, at least
_BEAT = 3.0
_MOST_WAITING = 2000  # events; beyond, the server waits
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0


class Listener(Protocol):
    """Called in the stream's own threads."""

    def on_events(self, behind: int, events: list[dict[str, Any]]) -> None:
        """Events in their order, all that come behind the one with the id `behind`."""

    def on_progress(self, event: dict[str, Any]) -> None: ...

    def on_state(self, connected: bool, problem: str | None) -> None: ...

    def on_beat(self, seconds: float) -> None:
        """So many seconds have gone by since the stream began, or since the last beat."""


class RelayStream:
    """Events behind `after`, until `end`; a connection that breaks is made anew."""

    def __init__(self, client: Client, after: int, listener: Listener) -> None:
        self.position = after  # the last event that was handed on
        self.connected = False
        self._client = client
        self._listener = listener
        self._read = after
        self._waiting: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._answer: HTTPResponse | None = None
        self._threads = [
            threading.Thread(target=self._quietly, args=(work,), name="tinker-panel", daemon=True)
            for work in (self._reading, self._sending)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Threads end soon, also one that waits for the server; they are not waited for."""
        self._over.set()
        with self._changed:
            self._changed.notify_all()
        # Closing it would not wake who reads from it.
        with (
            suppress(OSError, ValueError, AttributeError),
            socket.fromfd(self._answer.fileno(), socket.AF_INET, socket.SOCK_STREAM) as own,  # type: ignore[union-attr]
        ):
            own.shutdown(socket.SHUT_RDWR)

    def _quietly(self, work: Any) -> None:
        """What fails in a thread would be printed into a cell."""
        try:
            work()
        except Exception as error:
            with suppress(Exception):
                self._listener.on_state(False, f"The kernel's way to the server failed: {error}")
            self.end()

    def _reading(self) -> None:
        pause = _FIRST_PAUSE
        while not self._over.is_set():
            problem = f"The connection to {self._client.url} broke."
            try:
                with open_stream(self._client, "events", self._read) as self._answer:
                    self._say(True, None)
                    pause = _FIRST_PAUSE
                    self._take(self._answer)
            except RequestFailed as error:
                problem = str(error)
            except (OSError, HTTPException, ValueError):
                pass  # broken while it was read
            self._say(False, problem)
            self._over.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _take(self, answer: HTTPResponse) -> None:
        for frame in parse(answer):
            if self._over.is_set():
                return
            if frame.event == "progress":
                self._listener.on_progress(json.loads(frame.data))
            if frame.id is None or not frame.data:
                continue
            with self._changed:
                self._waiting.append(json.loads(frame.data))
                self._read = frame.id
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: len(self._waiting) < _MOST_WAITING or self._over.is_set()
                )

    def _sending(self) -> None:
        beat = time.monotonic() + _BEAT
        while not self._over.is_set():
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._over.is_set(), beat - time.monotonic()
                )
                batch, self._waiting = self._waiting, []
                self._changed.notify_all()
            if self._over.is_set():
                return
            if batch:
                behind, self.position = self.position, batch[-1]["id"]
                self._listener.on_events(behind, batch)
            if time.monotonic() >= beat:
                self._listener.on_beat(_BEAT)
                beat = time.monotonic() + _BEAT
            self._over.wait(_GAP)

    def _say(self, connected: bool, problem: str | None) -> None:
        if not self._over.is_set():
            self.connected = connected
            self._listener.on_state(connected, problem)
