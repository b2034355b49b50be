"""A server that speaks our own routes and computes nothing: what runs are and do is told to it.

Its controls are the real ones.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tornado import httpserver, netutil, web
from tornado.iostream import StreamClosedError

from jupyter_tinker.wire.controls import Controls, parse_change
from jupyter_tinker.wire.previews import Preview, parse_preview
from jupyter_tinker.wire.tinker import BadRequest

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
        self.watchers: set[_Events] = set()
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
            self.server = httpserver.HTTPServer(web.Application(_ROUTES, stub=self))
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


class _Handler(web.RequestHandler):
    @property
    def stub(self) -> Stub:
        stub: Stub = self.settings["stub"]
        return stub

    def prepare(self) -> None:
        body = json.loads(self.request.body) if self.request.body else None
        path = (self.request.uri or "").removeprefix("/tinker/")
        self.stub.asked.append((self.request.method or "", path, body))
        if self.stub.answers:
            status, answer, headers = self.stub.answers.pop(0)
            self.set_status(status)
            for name, value in headers.items():
                self.set_header(name, value)
            self.finish(answer)
        elif self.request.headers.get("X-API-Key") != KEY:
            self.refuse(401, "This key opens nothing here.")

    def refuse(self, status: int, sentence: str) -> None:
        self.set_status(status)
        self.finish({"detail": sentence})

    def of(self, run_id: str) -> StubRun:
        try:
            return self.stub.run(run_id)
        except StopIteration:
            self.refuse(404, f"There is no run {run_id!r}.")
            raise web.Finish from None

    def log_request(self) -> None:
        pass


class _Status(_Handler):
    def get(self) -> None:
        tasks = self.stub.progress.items()
        progress = [{"task": n, "run_id": None, "since": 1.7e9, **told} for n, told in tasks]
        status = {"engine": "stopped", "busy_seconds": 0.0, "status": None}
        self.finish({"server_id": self.stub.identity, **status, "progress": progress})


class _Runs(_Handler):
    def get(self) -> None:
        first = int(self.get_query_argument("offset", "0"))
        most = min(int(self.get_query_argument("limit", "100")), self.stub.page)
        page = [run.json() for run in self.stub.runs[first : first + most]]
        self.finish({"runs": page, "total": len(self.stub.runs)})


class _Run(_Handler):
    def get(self, run_id: str) -> None:
        self.finish(self.of(run_id).json())


class _Steps(_Handler):
    def get(self, run_id: str) -> None:
        after = int(self.get_query_argument("after", "0"))
        rows = [row for row in self.of(run_id).steps if row["id"] > after]
        self.finish({"steps": rows[: self.stub.page]})


class _RunEvents(_Handler):
    def get(self, run_id: str) -> None:
        after = int(self.get_query_argument("after", "0"))
        found = [e for e in self.stub.events if e["id"] > after and e["run_id"] == run_id]
        self.finish({"events": [e for e in found if e["kind"] != "step"][: self.stub.page]})


class _Batches(_Handler):
    def get(self, run_id: str) -> None:
        found = self.of(run_id).batches[: int(self.get_query_argument("limit"))]
        listed = [{k: v for k, v in one.items() if k != "hardest"} for one in found]
        self.finish({"batches": listed, "problem": None if found else "They are gone."})


class _Batch(_Handler):
    def get(self, run_id: str, batch: str) -> None:
        (found,) = (one for one in self.of(run_id).batches if one["id"] == int(batch))
        self.finish(found)


class _Keys(_Handler):
    def get(self) -> None:
        named = self.stub.keys.items()
        keys = [{"name": name, "created_at": 1.7e9, "revoked_at": at} for name, at in named]
        self.finish({"keys": keys})

    def post(self) -> None:
        name = json.loads(self.request.body)["name"]
        if name in self.stub.keys:
            return self.refuse(400, f"There is a key named {name!r} already; revoke it first.")
        self.stub.keys[name] = None
        self.finish({"name": name, "key": f"tml-key-{name}"})


class _Key(_Handler):
    def delete(self, name: str) -> None:
        if name not in self.stub.keys:
            return self.refuse(400, f"There is no key named {name!r}.")
        self.stub.keys[name] = 1.7e9
        self.finish({})


class _Controls(_Handler):
    def get(self, run_id: str) -> None:
        self.finish(self.of(run_id).controls.to_json())

    def post(self, run_id: str) -> None:
        run = self.of(run_id)
        step = run.steps[-1]["step"] if run.steps else 0
        try:
            wish = parse_change(self.request.body)
            run.controls = run.controls.changed(wish, by="ada", now=1_700_000_100.0, step=step)
        except BadRequest as error:
            return self.refuse(400, str(error))
        self.finish(run.controls.to_json())


class _Rewind(_Handler):
    def post(self, run_id: str) -> None:
        run, body = self.of(run_id), json.loads(self.request.body)
        step = body["step"]
        if step > len(run.steps):
            return self.refuse(400, f"The run has no step {step} on this branch.")
        number = len(run.branches) + 1
        parent = body.get("branch", number - 1)
        branch = {"number": number, "parent": parent, "step": step, "actor": "ada"}
        run.branches.append(branch)
        self.finish(run.json())


class _Fork(_Handler):
    def post(self, run_id: str) -> None:
        body = json.loads(self.request.body)
        branch = f"+branch={body['branch']}" if "branch" in body else ""
        self.finish({"path": f"tinker://{self.of(run_id).id}/weights/step={body['step']}{branch}"})


class _LrFind(_Handler):
    """Each look finds the sweep a state further."""

    def post(self, run_id: str) -> None:
        run, body = self.of(run_id), json.loads(self.request.body)
        if run.sweep["status"] == "running":
            return self.refuse(409, f"A sweep over run {run_id} is under way.")
        run.sweep = {
            "run_id": run_id,
            "status": "running",
            "stage": "copying",
            "step": run.steps[-1]["step"] if run.steps else 0,
            "settings": {"min": 1e-6, "max": 1.0, "steps": 60, **body},
            "points": [],
            "diverged": False,
            "suggestion": None,
            "message": None,
        }
        self.finish(run.sweep)

    def get(self, run_id: str) -> None:
        run = self.of(run_id)
        if run.sweep["status"] == "running" and run.found:
            run.sweep.update(run.found.pop(0))
        self.finish({"run_id": run_id, **run.sweep})

    def delete(self, run_id: str) -> None:
        run = self.of(run_id)
        run.sweep.update(status="cancelled", message="The sweep was cancelled.")
        self.finish(run.sweep)


class _Preview(_Handler):
    def get(self, run_id: str) -> None:
        run = self.of(run_id)
        who = {"changed_at": None, "changed_by": None, "sampling": None}
        self.finish({**run.preview.model_dump(), **who})

    def put(self, run_id: str) -> None:
        try:
            self.of(run_id).preview = parse_preview(self.request.body)
        except BadRequest as error:
            return self.refuse(400, str(error))
        self.get(run_id)

    def post(self, run_id: str) -> None:
        run = self.of(run_id)
        if not run.preview.prompts:
            return self.refuse(400, "This run has no prompts to answer; set some first.")
        run.answer(run.steps[-1]["step"], actor="ada")
        self.get(run_id)


class _Previews(_Handler):
    def get(self, run_id: str) -> None:
        after = int(self.get_query_argument("after", "0"))
        found = [one for one in self.of(run_id).rounds if one["id"] > after]
        self.finish({"previews": found[: self.stub.page]})


class _Events(_Handler):
    def tell(self, task: int, told: dict[str, Any] | None) -> None:
        data = {"task": task, "over": told is None, **(told or {})}
        event = {"id": None, "run_id": None, "time": 1.7e9, "kind": "progress", "actor": None}
        self.write(
            f"event: progress\ndata: {json.dumps({**event, 'step': None, 'data': data})}\n\n"
        )

    async def get(self) -> None:
        runs = self.get_query_arguments("run")
        newest = self.stub.events[-1]["id"] if self.stub.events else 0
        seen = int(self.request.headers.get("Last-Event-ID", newest))
        self.set_header("Content-Type", "text/event-stream")
        self.write(f"retry: 10\nid: {seen}\n\n: hello\n\nevent: heartbeat\ndata: {{}}\n\n")
        await self.flush()
        self.stub.watchers.add(self)
        known: dict[int, Any] = {}
        try:
            while True:
                for task in {**self.stub.progress, **known}:
                    now = self.stub.progress.get(task)
                    if known.get(task) != now:
                        known[task] = None if now is None else dict(now)
                        self.tell(task, now)
                for event in [e for e in self.stub.events if e["id"] > seen]:
                    seen = event["id"]
                    if not runs or event["run_id"] in (None, *runs):
                        self.write(f"id: {seen}\nevent: {event['kind']}\n")
                        self.write(f"data: {json.dumps(event)}\n\n")
                await self.flush()
                await asyncio.sleep(0.01)
        except StreamClosedError:
            pass
        finally:
            self.stub.watchers.discard(self)


_RUN = "/tinker/runs/([^/]+)"
_ROUTES: list[Any] = [
    ("/tinker/status", _Status),
    ("/tinker/runs", _Runs),
    (_RUN, _Run),
    (f"{_RUN}/steps", _Steps),
    (f"{_RUN}/events", _RunEvents),
    (f"{_RUN}/batches", _Batches),
    (f"{_RUN}/batches/([^/]+)", _Batch),
    (f"{_RUN}/controls", _Controls),
    (f"{_RUN}/rewind", _Rewind),
    (f"{_RUN}/fork", _Fork),
    (f"{_RUN}/lr_find", _LrFind),
    (f"{_RUN}/preview", _Preview),
    (f"{_RUN}/previews", _Previews),
    ("/tinker/events", _Events),
    ("/tinker/keys", _Keys),
    ("/tinker/keys/([^/]+)", _Key),
]
