"""A server that speaks our own routes and computes nothing: what runs are and do is told to it.

Its controls are the real ones.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tornado import httpserver, netutil, web

from jupyter_tinker.wire.controls import Controls
from jupyter_tinker.wire.previews import Preview
from tests.notebook.stub_routes import ROUTES, Events

KEY = "tml-key-of-the-stub"


@dataclass
class StubRun:
    id: str
    base_model: str = "tiny"
    created_at: float = 1_700_000_000.0
    state: str = "training"
    steps: list[dict[str, Any]] = field(default_factory=list)
    controls: Controls = field(default_factory=Controls)
    branches: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = None
    sweep: dict[str, Any] = field(default_factory=lambda: {"status": "none"})
    found: list[dict[str, Any]] = field(default_factory=list)  # what its sweep is to come to
    session_tags: list[str] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(default_factory=list)  # whole, newest first
    preview: Preview = field(default_factory=Preview)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def step(self, number: int, **columns: Any) -> None:
        row = {"loss_mean": 2.0, "learning_rate": 1e-4, "learning_rate_requested": 1e-4}
        identity = {"id": 10 + len(self.steps), "run_id": self.id, "step": number, "branch": 0}
        self.steps.append({**identity, **row, **columns})

    def answer(self, step: int, actor: str | None = None, branch: int = 0, **data: Any) -> None:
        """As if a preview had come to its end."""
        answers = [
            {
                "prompt": prompt,
                "text": f"{prompt} {step}",
                "tokens": 2,
                "end": "stop",
                "error": None,
            }
            for prompt in self.preview.prompts
        ]
        head = {"id": 100 + len(self.rounds), "time": 1_700_000_000.0, "step": step}
        what = {"actor": actor, "branch": branch, "answers": answers, "error": None, "skipped": 0}
        self.rounds.append({**head, **what, **data})

    def json(self) -> dict[str, Any]:
        return {
            "run_id": self.id,
            "base_model": self.base_model,
            "created_at": self.created_at,
            "state": "paused" if self.controls.paused else self.state,
            "controls": self.controls.to_json(),
            "branch": len(self.branches),
            "branches": self.branches,
            "started_from": None,
            "ended": self.ended,
            "session_tags": self.session_tags,
            "last_step": self.steps[-1] if self.steps else None,
        }


class Stub:
    """Runs, newest first, and events; what was asked; and what the next answers are to be."""

    def __init__(self) -> None:
        self.runs: list[StubRun] = []
        self.events: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str, Any]] = []
        self.answers: list[tuple[int, bytes, dict[str, str]]] = []  # instead of the usual ones
        self.page = 1000
        self.progress: dict[int, dict[str, Any]] = {}  # what takes long, by the task's number
        self.identity = "the-stub"
        self.keys: dict[str, float | None] = {}  # name -> when it was revoked
        self.watchers: set[Events] = set()
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        (socket,) = netutil.bind_sockets(0, "127.0.0.1")
        self.port: int = socket.getsockname()[1]

        async def start() -> None:
            self.server = httpserver.HTTPServer(web.Application(ROUTES, stub=self, key=KEY))
            self.server.add_sockets([socket])

        self.loop.run_until_complete(start())
        self._ready.set()
        self.loop.run_forever()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/tinker"

    def run(self, name: str) -> StubRun:
        return next(run for run in self.runs if run.id == name)

    def happen(self, run_id: str | None, kind: str, *, step: int | None = None, **data: Any) -> int:
        """Add an event, which watchers get."""
        number = self.events[-1]["id"] + 1 if self.events else 1
        data = {"step": step, **data} if kind in ("step", "rewound") else data
        self.events.append(
            {
                "id": number,
                "run_id": run_id,
                "time": 1_700_000_000.0,
                "kind": kind,
                "actor": "ada" if kind in ("paused", "rewound") else None,
                "step": step,
                "data": data,
            }
        )
        return number

    def wait_for_watchers(self, count: int = 1) -> None:
        self._wait(lambda: len(self.watchers) == count)

    def _wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not until():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def drop_watchers(self) -> None:
        """Break every connection of a watcher, amid an event."""

        dropped = set(self.watchers)

        def drop() -> None:
            for watcher in dropped:
                watcher.write(b'id: 999\ndata: {"id": 999, "cut')
                watcher.flush()
                watcher.request.connection.stream.close()  # type: ignore[union-attr]

        self.loop.call_soon_threadsafe(drop)
        self._wait(lambda: not dropped & self.watchers)

    def close(self) -> None:
        async def stop() -> None:
            self.server.stop()
            await self.server.close_all_connections()

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()
