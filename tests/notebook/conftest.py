from __future__ import annotations

from collections.abc import Iterator

import pytest

from jupyter_tinker.notebook.client import Client
from jupyter_tinker.notebook.connection import KEY as KEY_VARIABLE
from jupyter_tinker.notebook.connection import URL
from tests.notebook.stub import KEY, Stub, StubRun

FIRST = "aaaaaaaa-1111:train:0"
SECOND = "aaaabbbb-2222:train:0"
THIRD = "aaaabbbb-2222:train:1"


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server with three runs, the last of which is the newest and has two steps."""
    stub = Stub()
    stub.runs = [StubRun(THIRD), StubRun(SECOND, state="idle"), StubRun(FIRST, state="ended")]
    stub.runs[0].step(1, loss_mean=3.0)
    stub.runs[0].step(2, loss_mean=2.5)
    yield stub
    stub.close()


@pytest.fixture
def client(stub: Stub) -> Client:
    return Client(stub.url, KEY)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No server can be found."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    for name in (URL, KEY_VARIABLE, "JPY_PARENT_PID", "JUPYTER_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def named(stub: Stub, nowhere: None, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """The environment names the stub."""
    monkeypatch.setenv(URL, stub.url)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return stub
