"""What the kernel does for a page that cannot reach the server itself."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import jupyter_tinker
from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.relay import Relay, allowed
from tests.notebook.conftest import FIRST, SECOND, THIRD
from tests.notebook.stub import KEY, Stub, StubRun

PATH = f"runs/{THIRD.replace(':', '%3A')}"


class Page:
    """What a page of this name is told, and how it asks."""

    def __init__(self, name: str = "p") -> None:
        self.name = name
        self.told: list[dict[str, Any]] = []
        self.bytes: list[bytes] = []
        self.relay: Relay

    def send(self, message: dict[str, Any], buffers: list[bytes]) -> None:
        self.bytes += [json.dumps(message).encode(), *map(zlib.decompress, buffers)]
        body = json.loads(zlib.decompress(buffers[0])) if buffers else None
        self.told.append({**message, "body": body})

    def say(self, kind: str, **more: Any) -> None:
        self.relay.hear({"kind": kind, "page": self.name, **more})

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int | None, Any]:
        number = len(self.told) + 1000
        self.say("ask", number=number, method=method, path=path, body=body)
        answer = until(lambda: [t for t in self.told if t.get("number") == number])[0]
        assert answer["page"] == self.name
        return answer["status"], answer["body"]

    def events(self) -> list[int]:
        return [event["id"] for t in self.told if t["kind"] == "events" for event in t["body"]]

    def states(self) -> list[bool]:
        return [t["connected"] for t in self.told if t["kind"] == "state"]

    def pushed(self) -> list[str]:
        return [t["path"] for t in self.told if t["kind"] == "answer" and "number" not in t]


def until(said: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (value := said()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)
    return value


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tinker-panel"]


@pytest.fixture
def page(client: Client) -> Iterator[Page]:
    page = Page()
    page.relay = Relay(lambda: client, page.send)
    yield page
    page.relay.close()
    until(lambda: not threads())


def test_questions_are_answered_as_the_server_does(page: Page, stub: Stub) -> None:
    status, body = page.ask("GET", "runs?limit=1000")
    assert status == 200
    assert [run["run_id"] for run in body["runs"]] == [THIRD, SECOND, FIRST]
    status, body = page.ask("POST", f"{PATH}/controls", {"learning_rate_scale": 0.5})
    assert (status, body["learning_rate_scale"]) == (200, 0.5)
    assert stub.runs[0].controls.learning_rate_scale == 0.5
    status, body = page.ask("POST", f"{PATH}/controls", {"learning_rate_scale": -1})
    assert status == 400
    assert "learning_rate_scale must be" in body["detail"]


def test_the_page_gets_no_key(page: Page) -> None:
    page.ask("GET", "status")
    page.ask("GET", "runs/nothing")
    page.say("follow", after=0)
    until(page.states)
    assert all(KEY.encode() not in told for told in page.bytes)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "keys"),
        ("POST", "keys"),
        ("DELETE", "keys/laptop"),
        ("GET", "api/v1/training_runs"),
        ("POST", "runs/r/steps"),
        ("GET", "runs/%2e%2e/keys"),
        ("GET", "runs/../keys"),
        ("GET", "runs/a%2F..%2F..%2Fkeys"),
        ("GET", "runs/r/steps?after=0 HTTP/1.1\r\nX: y"),
        ("GET", "http://elsewhere/runs"),
        ("GET", ""),
    ],
)
def test_nothing_else_is_asked(page: Page, stub: Stub, method: str, path: str) -> None:
    assert not allowed(method, path)
    status, body = page.ask(method, path, {})
    assert status == 403
    assert "does not ask for" in body["detail"]
    assert stub.asked == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "status"),
        ("GET", "runs?limit=1000"),
        ("GET", f"{PATH}/steps?after=12"),
        ("GET", f"{PATH}/controls"),
        ("POST", f"{PATH}/rewind"),
        ("POST", f"{PATH}/fork"),
        ("GET", f"{PATH}/batches/12"),
        ("PUT", f"{PATH}/preview"),
        ("POST", f"{PATH}/preview"),
        ("POST", f"{PATH}/lr_find"),
        ("DELETE", f"{PATH}/lr_find"),
    ],
)
def test_what_a_panel_needs_is_asked(method: str, path: str) -> None:
    assert allowed(method, path)


def test_a_body_beyond_all_measure_is_refused(page: Page, stub: Stub) -> None:
    assert page.ask("POST", f"{PATH}/controls", {"x": "x" * 70_000})[0] == 403
    assert stub.asked == []


def test_pages_of_a_history_are_bounded(page: Page, stub: Stub) -> None:
    page.ask("GET", f"{PATH}/steps?after=0")
    assert stub.asked[-1][1].endswith("/steps?after=0&limit=2000")


def test_what_is_no_message_is_ignored(page: Page, stub: Stub) -> None:
    for message in (None, 7, {}, {"kind": "ask"}, {"kind": "follow", "page": "p", "after": "x"}):
        page.relay.hear(message)
    assert page.ask("GET", "status")[0] == 200
    assert [path for _, path, _ in stub.asked] == ["status"]


def test_a_server_that_does_not_answer_is_told_of() -> None:
    def nowhere() -> Client:
        raise RequestFailed("No Jupyter server runs here.")

    page = Page()
    page.relay = Relay(nowhere, page.send)
    assert page.ask("GET", "runs") == (None, {"detail": "No Jupyter server runs here."})
    page.say("follow", after=0)
    until(lambda: page.states() == [False])
    assert page.told[-1]["problem"] == "No Jupyter server runs here."


def test_events_come_in_batches_each_once_and_without_a_gap(page: Page, stub: Stub) -> None:
    for step in range(1, 4):
        stub.happen(THIRD, "step", step=step)
    page.say("follow", after=1)
    until(lambda: page.events() == [2, 3])
    for step in range(4, 400):
        stub.happen(THIRD, "step", step=step)
    until(lambda: page.events()[-1:] == [399])
    stub.drop_watchers()
    stub.happen(THIRD, "paused", reason="because")
    until(lambda: page.events()[-1:] == [400])
    assert page.events() == list(range(2, 401))
    batches = [t for t in page.told if t["kind"] == "events"]
    assert len(batches) < 40
    ends = [1, *(batch["body"][-1]["id"] for batch in batches)]
    assert [batch["behind"] for batch in batches] == ends[:-1]
    assert page.states() == [True, False, True]


def test_what_takes_long_is_told(page: Page, stub: Stub) -> None:
    loading = {"what": "loading tiny", "done": 3, "total": 9, "unit": "tensors"}
    stub.progress[5] = loading
    page.say("follow", after=0)

    def told() -> list[dict[str, Any]]:
        return [t["body"]["data"] for t in page.told if t["kind"] == "progress"]

    assert until(told)[0] == {"task": 5, "over": False, **loading}
    del stub.progress[5]
    until(lambda: told()[-1] == {"task": 5, "over": True})


def test_a_run_that_starts_is_shown_without_being_asked_for(page: Page, stub: Stub) -> None:
    stub.page = 2
    page.say("follow", after=0)
    until(page.states)
    stub.runs.insert(0, StubRun("new"))
    for step in (1, 2, 3):
        stub.runs[0].step(step)
    stub.happen("new", "run_created")
    until(lambda: page.pushed()[-1:] == ["runs/new/events?after=1"] or len(page.pushed()) > 6)
    assert page.pushed()[:6] == [
        "runs?limit=1000",
        "runs/new",
        "runs/new/steps?after=0",
        "runs/new/steps?after=11",
        "runs/new/steps?after=12",
        "runs/new/events?after=0",
    ]


def test_a_second_page_gets_what_the_first_has(page: Page, stub: Stub) -> None:
    for step in range(1, 4):
        stub.happen(THIRD, "step", step=step)
    page.say("follow", after=0)
    until(lambda: page.events() == [1, 2, 3])
    page.name = "another"
    page.say("follow", after=1)
    until(lambda: page.events() == [1, 2, 3, 2, 3])
    stub.wait_for_watchers(1)
    assert len(threads()) <= 4


def test_threads_end_with_the_last_page(page: Page, stub: Stub) -> None:
    page.say("follow", after=0)
    page.relay.hear({"kind": "follow", "page": "another", "after": 0})
    stub.wait_for_watchers(1)
    page.say("bye")
    assert threads()
    page.relay.hear({"kind": "bye", "page": "another"})
    until(lambda: not threads())
    page.say("follow", after=0)
    until(threads)


def test_a_page_that_is_silent_while_the_kernel_could_hear_it_is_forgotten(
    client: Client, stub: Stub
) -> None:
    idle: list[Callable[[], None]] = []
    page = Page()
    page.relay = Relay(lambda: client, page.send, idle.append)
    page.say("follow", after=0)
    until(page.states)
    for _ in range(1000):
        page.relay.on_beat(3.0)  # a long cell: the kernel is never idle
    assert len(idle) == 1
    assert threads()
    for _ in range(31):
        idle.pop()()
        page.relay.on_beat(3.0)
    until(lambda: not threads())


def test_a_panel_says_which_server_it_shows_and_keeps_it(
    named: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = jupyter_tinker.Panel()
    assert (panel.server_url, panel.server_id) == (named.url, "the-stub")
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:1/tinker")
    panel.paused = True
    assert named.runs[0].controls.paused


def test_a_closed_panel_lets_go(named: Stub) -> None:
    panel = jupyter_tinker.Panel()
    panel._handle_custom_msg({"kind": "follow", "page": "p", "after": 0}, [])
    named.wait_for_watchers(1)
    panel.close()
    until(lambda: not threads())
