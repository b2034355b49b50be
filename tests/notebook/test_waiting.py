"""What a waiting cell waits for is shown, and nothing else ever is."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from jupyter_tinker.notebook import progress
from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.progress import Cell, NotebookBar, foremost
from jupyter_tinker.notebook.waiting import call_of
from tests.notebook.stub import KEY, Stub

LOADING = {"what": "loading <tiny>", "done": 5, "total": 20, "unit": "tensors"}

# As the SDK has them: a call that blocks, and a future that can be awaited.
_SDK = """
def wait(event):
    return event.wait(30)

class Future:
    def __init__(self, event):
        self.event = event

    async def result_async(self):
        return await self.event.wait()

    def __await__(self):
        return self.result_async().__await__()
"""


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("tinker.made_up")
    exec(_SDK, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


class Shown:
    """A bar that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.made = 0
        self.open = False
        self.seen = threading.Event()
        self.gone = threading.Event()

    def __call__(self) -> Shown:
        self.made += 1
        self.open = True
        return self

    def show(self, told: dict[str, Any]) -> None:
        assert self.open
        self.told.append(told["what"])
        self.seen.set()

    def close(self) -> None:
        self.open = False
        self.gone.set()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    monkeypatch.setattr(progress, "TerminalBar", shown)
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.005)
    monkeypatch.setattr(progress, "_PATIENCE_SECONDS", 0.02)
    return shown


@pytest.fixture
def shell(
    named: Stub, sdk: Any, shown: Shown, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[InteractiveShell]:
    """With the extension loaded, the SDK as `sdk`, and the bar as `shown`."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr(sys, "displayhook", sys.displayhook)
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    shell.run_cell("%load_ext jupyter_tinker")
    shell.push({"sdk": sdk, "shown": shown, "stub": named, "threading": threading})
    named.asked.clear()
    yield shell
    shell.run_line_magic("unload_ext", "jupyter_tinker")
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


def watching() -> bool:
    return any(thread.name == "tinker-progress" for thread in threading.enumerate())


def join() -> None:
    for thread in threading.enumerate():
        if thread.name == "tinker-progress":
            thread.join(30)


def test_a_cell_that_waits_shows_what_for_until_that_is_done(
    shell: InteractiveShell, named: Stub, shown: Shown
) -> None:
    named.progress = {1: LOADING}
    done = shell.run_cell(
        "seen = sdk.wait(shown.seen); during = shown.open\n"
        "stub.progress = {}; gone = sdk.wait(shown.gone)"
    )
    done.raise_error()
    space = shell.user_ns
    assert (space["seen"], space["during"], space["gone"]) == (True, True, True)
    assert set(shown.told) == {"loading <tiny>"}
    assert shown.made == 1
    join()
    assert not watching(), "no thread is left"


def test_it_goes_with_its_cell(shell: InteractiveShell, named: Stub, shown: Shown) -> None:
    named.progress = {1: LOADING}
    shell.run_cell("sdk.wait(shown.seen)").raise_error()
    assert not shown.open
    shown.seen.clear()
    told = len(shown.told)
    assert "RuntimeError" in repr(shell.run_cell("sdk.wait(shown.seen); raise RuntimeError"))
    assert not shown.open
    assert len(shown.told) > told


def test_a_cell_that_awaits_is_one_that_waits(
    shell: InteractiveShell, named: Stub, shown: Shown
) -> None:
    named.progress = {1: LOADING}
    shell.run_cell(
        "import asyncio\n"
        "event = asyncio.Event(); loop = asyncio.get_running_loop()\n"
        "def end(): shown.seen.wait(30); loop.call_soon_threadsafe(event.set)\n"
        "threading.Thread(target=end).start()\n"
        "answers = await asyncio.gather(sdk.Future(event), sdk.Future(event))"
    ).raise_error()
    assert shell.user_ns["answers"] == [True, True]
    assert "loading <tiny>" in shown.told


@pytest.mark.parametrize(
    "cell",
    [
        "threading.Event().wait(0.2)",  # waits for something else
        "for _ in range(400): sdk.wait(ready)",  # each answer comes at once
        "await asyncio.sleep(0.2)",
        "%tinker progress off\nsdk.wait(later)",
    ],
)
def test_nothing_is_asked_for_a_cell_that_does_not_wait(
    shell: InteractiveShell, named: Stub, shown: Shown, cell: str
) -> None:
    named.progress = {1: LOADING}
    ready = threading.Event()
    ready.set()
    later = threading.Event()
    threading.Timer(0.2, later.set).start()
    shell.push({"ready": ready, "later": later, "asyncio": asyncio})
    shell.run_cell(cell).raise_error()
    assert named.asked == []
    assert shown.made == 0


def test_nothing_is_shown_where_nothing_takes_long(
    shell: InteractiveShell, named: Stub, shown: Shown
) -> None:
    asked = threading.Event()
    named.asked = Alarm(asked)
    shell.push({"asked": asked})
    shell.run_cell("sdk.wait(asked)").raise_error()
    assert shown.made == 0


class Alarm(list[Any]):
    """Sets an event with the third thing that comes."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self._event = event

    def append(self, thing: Any) -> None:
        super().append(thing)
        if len(self) == 3:
            self._event.set()


@pytest.mark.parametrize(
    "answer", [(500, b"", {}), (200, b"<html>", {}), (200, b'{"engine": "stopped"}', {})]
)
def test_a_server_that_does_not_say_is_silence(
    shell: InteractiveShell,
    named: Stub,
    shown: Shown,
    capsys: pytest.CaptureFixture[str],
    answer: Any,
) -> None:
    named.progress = {1: LOADING}
    named.answers = [answer] * 3
    shell.run_cell("sdk.wait(shown.seen)").raise_error()
    assert named.answers == [], "and it is asked again"
    assert capsys.readouterr().err == ""


def test_it_can_be_turned_off_and_on(
    shell: InteractiveShell, named: Stub, shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, told in (
        ("", "is shown"),
        ("off", "is not shown"),
        ("off", "is not shown"),
        ("on", "is shown"),
    ):
        shell.run_cell(f"%tinker progress {command}")
        assert f"{told}.\n" in capsys.readouterr().out
    shell.run_cell("%tinker progress perhaps")
    assert "usage: %tinker progress [on|off]" in capsys.readouterr().err
    named.progress = {1: LOADING}
    shell.run_cell("sdk.wait(shown.seen)").raise_error()
    assert shown.made == 1


def test_unloaded_it_watches_no_more(shell: InteractiveShell, named: Stub) -> None:
    shell.run_cell("%unload_ext jupyter_tinker")
    join()
    shell.run_cell("import threading; names = [t.name for t in threading.enumerate()]")
    assert "tinker-progress" not in shell.user_ns["names"]


def test_our_own_questions_are_waits_too(stub: Stub) -> None:
    def ask() -> None:
        with pytest.raises(RequestFailed):
            Client(stub.url, KEY).get("events")  # which does not end

    asks = threading.Thread(target=ask)
    asks.start()
    stub.wait_for_watchers()
    assert asks.ident is not None
    call = call_of(asks.ident)
    assert call is not None
    assert call.f_code.co_name == "get"
    stub.drop_watchers()
    asks.join()
    assert call_of(asks.ident) is None


# What is shown


@pytest.mark.parametrize(
    ("totals", "chosen"),
    [([], None), ([None, None], 1), ([None, 5, None], 1), ([3, 5, 0], 1)],
)
def test_one_task_is_shown(totals: list[int | None], chosen: int | None) -> None:
    tasks = [{"task": number, "total": total} for number, total in enumerate(totals)]
    found = foremost(tasks)
    assert (None if found is None else found["task"]) == chosen


def test_a_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: sent.append((data, how)))
    bar = NotebookBar()
    for _ in range(2):
        bar.show(LOADING)
    bar.show({**LOADING, "total": None})
    bar.close()
    assert [how["update"] for _, how in sent] == [False, True, True]
    assert len({how["display_id"] for _, how in sent}) == 1
    first, second, last = (data for data, _ in sent)
    assert first["text/plain"] == "loading <tiny>: 5 of 20 tensors"
    assert '<progress value="5" max="20" aria-label="loading &lt;tiny&gt;">' in first["text/html"]
    assert "<tiny>" not in first["text/html"]
    assert "value=" not in second["text/html"]
    assert last == {"text/html": "", "text/plain": ""}


def test_a_bar_in_no_terminal_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    bar = progress.TerminalBar()
    bar.show(LOADING)
    bar.close()
    assert capfd.readouterr() == ("", "")


def test_a_cell_that_is_over_shows_nothing_more(shown: Shown) -> None:
    cell = Cell(shown, lambda: Client("http://127.0.0.1:9/tinker", ""))
    cell._show(LOADING)
    cell.end()
    cell.end()
    assert (shown.made, shown.open) == (1, False)
