"""The client of our own routes: what it sends, finds, and says when it fails."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.notebook import connection, follow
from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.connection import KEY as KEY_VARIABLE
from jupyter_tinker.notebook.connection import URL, ConnectionFailed, connect
from jupyter_tinker.notebook.follow import Frame, parse
from jupyter_tinker.notebook.servers import running_servers
from tests.notebook.conftest import FIRST, THIRD
from tests.notebook.stub import KEY, Stub


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Questions


def test_a_refusal_is_the_servers_sentence(stub: Stub, client: Client) -> None:
    with pytest.raises(RequestFailed) as refused:
        client.post(f"runs/{THIRD}/controls", {"learning_rates": 1})
    assert str(refused.value).startswith("There is no control 'learning_rates'")
    assert refused.value.status == 400
    with pytest.raises(RequestFailed, match=r"^This key opens nothing here\.$") as refused:
        Client(stub.url, "tml-wrong").get("runs")
    assert refused.value.status == 401


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (500, b"<html>", "the status 500; is jupyter_tinker installed"),
        (404, b'"a string"', "the status 404; is jupyter_tinker installed"),
        (200, b"<html>Log in", "does not answer as a Tinker server"),
    ],
)
def test_what_is_no_tinker_server_is_told_apart(
    stub: Stub, client: Client, status: int, body: bytes, told: str
) -> None:
    stub.answers = [(status, body, {})]
    with pytest.raises(RequestFailed, match=told):
        client.get("runs")


def test_a_redirect_is_not_followed(stub: Stub, client: Client) -> None:
    stub.answers = [(302, b"", {"Location": f"{stub.url}/status"})]
    with pytest.raises(RequestFailed, match=f"sends its askers to {stub.url}/status"):
        client.post(f"runs/{THIRD}/controls", {"paused": True})
    assert len(stub.asked) == 1
    assert not stub.run(THIRD).controls.paused


def test_nobody_answers() -> None:
    url = f"http://127.0.0.1:{closed_port()}/tinker"
    with pytest.raises(RequestFailed, match=f"{url} does not answer as a Tinker server") as failed:
        Client(url, KEY).get("runs")
    assert failed.value.status is None
    with pytest.raises(RequestFailed, match="does not answer as a Tinker server"):
        Client("not a url", KEY).get("runs")


def test_a_key_is_not_shown(client: Client) -> None:
    assert KEY not in repr(client)


def test_a_long_history_comes_in_pages(stub: Stub, client: Client) -> None:
    stub.page = 2
    for step in range(3, 8):
        stub.run(THIRD).step(step)
    assert [row["step"] for row in client.history(THIRD)] == [1, 2, 3, 4, 5, 6, 7]
    after = stub.run(THIRD).steps[4]["id"]
    assert [row["step"] for row in client.history(THIRD, after)] == [6, 7]
    assert client.history(FIRST) == []


# Where the server is


@pytest.mark.usefixtures("nowhere")
def test_arguments_go_before_the_environment(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL, f"http://127.0.0.1:{closed_port()}/tinker")
    monkeypatch.setenv(KEY_VARIABLE, "tml-another")
    assert connect(f"{stub.url}/", KEY) == Client(stub.url, KEY)
    assert os.environ[KEY_VARIABLE] == "tml-another", "what was named is not looked for"
    with pytest.raises(ConnectionFailed, match="opens nothing"):
        connect(stub.url)
    with pytest.raises(ConnectionFailed, match="does not answer"):
        connect()


@pytest.mark.usefixtures("nowhere")
def test_a_url_without_a_key(stub: Stub) -> None:
    with pytest.raises(ConnectionFailed, match=f"no key to {stub.url}: set TINKER_API_KEY"):
        connect(stub.url)


def running(stub: Stub, pid: int, token: str, **more: Any) -> None:
    """Leave the file by which a running Jupyter server is found."""
    folder = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    url = stub.url.removesuffix("tinker")
    about = {"pid": pid, "url": url, "token": token, **more}
    (folder / f"jpserver-{pid}.json").write_text(json.dumps(about))


@pytest.mark.usefixtures("nowhere")
def test_the_only_server_that_runs_is_found(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    running(stub, os.getpid(), KEY.removeprefix("tml-"))
    for name in (URL, KEY_VARIABLE):  # so that they are restored
        monkeypatch.setenv(name, "")
    assert connect() == Client(stub.url, KEY)
    assert (os.environ[URL], os.environ[KEY_VARIABLE]) == (stub.url, KEY)


@pytest.mark.usefixtures("nowhere")
def test_of_several_servers_one_must_be_named(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    running(stub, os.getpid(), KEY.removeprefix("tml-"))
    other = f"http://127.0.0.1:{closed_port()}/"
    running(stub, os.getppid(), "x", url=other)
    with pytest.raises(ConnectionFailed, match="Several Jupyter servers run here") as failed:
        connect()
    assert other in str(failed.value)
    monkeypatch.setenv("JUPYTER_SERVER_URL", stub.url.removesuffix("tinker"))
    assert connection.find() == Client(stub.url, KEY), "a terminal of Jupyter has its own"
    monkeypatch.setenv("JPY_PARENT_PID", str(os.getppid()))
    assert connection.find().url == f"{other}tinker", "a kernel, too"


@pytest.mark.usefixtures("nowhere")
def test_no_server_runs() -> None:
    with pytest.raises(ConnectionFailed, match="No Jupyter server runs here; set TINKER_BASE_URL"):
        connect()


def test_importing_the_client_is_light() -> None:
    code = "import sys, jupyter_tinker; jupyter_tinker.runs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"tornado", "jupyter_server", "torch", "numpy", "pydantic", "pandas", "tinker"}
    assert not set(done.stdout.split()) & heavy


@pytest.mark.usefixtures("nowhere")
def test_running_servers_are_those_that_jupyter_finds(stub: Stub) -> None:
    from jupyter_server.serverapp import list_running_servers

    folder = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    running(stub, os.getpid(), "one")
    running(stub, os.getppid(), "", base_url="/")
    running(stub, ended.pid, "of a server that has ended")
    (folder / "jpserver-1.json").write_text('{"pid": 1, "url"')  # amid being written
    (folder / "nbserver-1.json").write_text('{"pid": 1}')
    ours = running_servers()

    def by_pid(server: dict[str, Any]) -> int:
        return server["pid"]

    assert sorted(ours, key=by_pid) == sorted(list_running_servers(), key=by_pid)
    assert len(ours) == 2


@pytest.mark.parametrize("left", ["[]", '{"pid": "1", "url": "x", "token": ""}', '{"pid": 1}', ""])
@pytest.mark.usefixtures("nowhere")
def test_files_that_are_of_no_server(left: str) -> None:
    (Path(os.environ["JUPYTER_RUNTIME_DIR"]) / "jpserver-1.json").write_text(left)
    assert running_servers() == []


# Events


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(follow, "_LONGEST_PAUSE", 0.05)


@pytest.mark.usefixtures("_hurried")
def test_events_come_once_whatever_breaks(stub: Stub, client: Client) -> None:
    stub.happen(THIRD, "step", step=0)
    events = follow.follow(client, [THIRD], after=0)
    assert next(events)["id"] == 1
    for number in range(2, 8):
        stub.drop_watchers()
        stub.happen(FIRST, "step")  # of another run
        stub.happen(THIRD, "step", step=number)
        assert next(events)["step"] == number
    events.close()
    stub.wait_for_watchers(0)


@pytest.mark.usefixtures("_hurried")
def test_from_now_on_misses_nothing_that_comes_between(stub: Stub, client: Client) -> None:
    stub.happen(THIRD, "step", step=0)
    events = follow.follow(client, [THIRD])
    seen: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: seen.append(next(events)))
    waiting.start()
    stub.wait_for_watchers()
    # The connection breaks before anything has happened, and is not made again at once.
    stub.answers = [(503, b"", {})] * 5
    stub.drop_watchers()
    stub.happen(THIRD, "paused", reason="ada paused it")
    waiting.join(30)
    assert [event["kind"] for event in seen] == ["paused"]
    assert stub.answers == []
    events.close()


@pytest.mark.usefixtures("_hurried")
def test_a_server_that_restarts_is_waited_for(stub: Stub, client: Client) -> None:
    stub.happen(THIRD, "step", step=1)
    events = follow.follow(client, after=0)
    next(events)
    stub.answers = [(503, b"", {}), (502, b"<html>", {})]
    stub.drop_watchers()
    stub.happen(None, "engine_started")
    assert next(events)["kind"] == "engine_started"
    assert stub.answers == []


@pytest.mark.usefixtures("_hurried")
def test_refusals_and_a_server_that_stays_away_end_it(stub: Stub, client: Client) -> None:
    stub.happen(THIRD, "step", step=1)
    with pytest.raises(RequestFailed, match="opens nothing"):
        next(follow.follow(Client(stub.url, "tml-wrong")))
    nobody = Client(f"http://127.0.0.1:{closed_port()}/tinker", KEY)
    with pytest.raises(RequestFailed, match="does not answer"):
        next(follow.follow(nobody))
    stub.answers = [(200, b"<html>", {})]
    with pytest.raises(RequestFailed, match="no stream of events"):
        next(follow.follow(client))
    events = follow.follow(client, after=0, patience=0.2)
    next(events)
    stub.answers = [(503, b"", {})] * 1000
    stub.drop_watchers()
    with pytest.raises(RequestFailed, match="status 503"):
        next(events)


@pytest.mark.usefixtures("_hurried")
def test_progress_is_told_to_who_wants_it_and_ends_with_the_connection(
    stub: Stub, client: Client
) -> None:
    stub.progress = {3: {"what": "loading", "done": 1, "total": 2, "unit": "tensors"}}
    stub.happen(THIRD, "step", step=1)
    without = follow.follow(client, [THIRD], after=0)
    assert next(without)["kind"] == "step"
    events = follow.follow(client, [THIRD], after=0, progress=True)
    first, second = next(events), next(events)
    assert (first["id"], second["id"]) == (None, 1)
    assert first["data"] == {"task": 3, "over": False, **stub.progress[3]}
    del stub.progress[3]
    stub.drop_watchers()
    assert next(events)["data"] == {"task": 3, "over": True}
    stub.happen(THIRD, "step", step=2)
    assert next(events)["id"] == 2, "gone on behind the last event"
    assert next(without)["id"] == 2
    events.close()
    without.close()


def test_frames_of_a_stream() -> None:
    stream = (
        b": hello\n\nretry: 5\nid: 7\n\nid: 8\nevent: step\ndata: {\ndata:}\r\n\r\nid: 9\ndata: x"
    )
    frames = [Frame(7, ""), Frame(8, "{\n}", "step")]
    assert list(parse(stream.splitlines(keepends=True))) == frames
    dropped = b'event: dropped\ndata: {"reason": "slow"}\n\n'
    assert list(parse(dropped.splitlines(keepends=True))) == [
        Frame(None, '{"reason": "slow"}', "dropped")
    ]
