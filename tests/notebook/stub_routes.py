"""The routes of the stub: they answer from what it was told, and note what was asked."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from tornado import web
from tornado.iostream import StreamClosedError

from jupyter_tinker.wire.controls import parse_change
from jupyter_tinker.wire.previews import parse_preview
from jupyter_tinker.wire.tinker import BadRequest

if TYPE_CHECKING:
    from tests.notebook.stub import Stub, StubRun


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
        elif self.request.headers.get("X-API-Key") != self.settings["key"]:
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


class Events(_Handler):
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
ROUTES: list[Any] = [
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
    ("/tinker/events", Events),
    ("/tinker/keys", _Keys),
    ("/tinker/keys/([^/]+)", _Key),
]
