"""How far a command is: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_tinker.cli import models, progress
from jupyter_tinker.cli.progress import terminal_progress
from jupyter_tinker.cli.watch import Screen, line
from jupyter_tinker.server.hub import Progress
from jupyter_tinker.server.model_folder import BaseModel
from tests.cli.conftest import Command


class Terminal(io.StringIO):
    """Standard error of a person."""

    def isatty(self) -> bool:
        return True

    @property
    def drawn(self) -> list[str]:
        return [line.strip() for line in self.getvalue().replace("\x1b[A", "").split("\r")]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=terminal))
    return terminal


def work(report: Progress) -> None:
    report("Looking up x", None)
    report("Downloading x: 1.0 of 4.0 MB", 0.25)
    report("Downloading x: 3.0 of 4.0 MB", 0.75)
    report("Done", 1.0)


def ticking() -> bool:
    return any(thread.name == "progress" for thread in threading.enumerate())


def test_a_terminal_has_a_bar(terminal: Terminal) -> None:
    with terminal_progress() as report:
        work(report)
        assert ticking()
    drawn = terminal.drawn
    assert any(line.startswith("Looking up x   0% |") for line in drawn)
    assert any(line.startswith("Downloading x: 1.0 of 4.0 MB  25% |") for line in drawn)
    assert drawn[-1].startswith("Done 100% |")
    assert drawn[-1].endswith("00:00")
    assert not ticking(), "its clock has stopped"


def test_the_clock_goes_on_while_nothing_is_told(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_CLOCK_SECONDS", 0.001)
    with terminal_progress() as report:
        report("Waiting", None)
        count = len(terminal.drawn)
        while len(terminal.drawn) < count + 3:
            pass
    assert all(line.startswith("Waiting   0% |") for line in terminal.drawn[-3:])


def test_nothing_is_drawn_of_what_tells_nothing(terminal: Terminal) -> None:
    with terminal_progress():
        pass
    assert terminal.getvalue() == ""


def test_an_interrupted_bar_is_closed(terminal: Terminal) -> None:
    def interrupted() -> None:
        with terminal_progress() as report:
            report("Downloading", 0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().endswith("\n")
    assert not ticking()


def test_elsewhere_each_stage_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal_progress() as report:
        work(report)
    lines = "Looking up x\nDownloading x: 1.0 of 4.0 MB\n"
    assert capsys.readouterr() == ("", lines)


def test_pull_tells_on_standard_error(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def pull(name: str, folder: Path, report: Progress, **_: Path) -> BaseModel:
        work(report)
        return BaseModel(name, tmp_path, 512, 384, "LlamaForCausalLM", None, True)

    monkeypatch.setattr(models, "pull", pull)
    status, printed, told = command("pull", "org/x")
    assert (status, printed) == (0, f"org/x is at {tmp_path}\n")
    assert told.splitlines() == ["Looking up x", "Downloading x: 1.0 of 4.0 MB"]


# Watching


def shown(terminal: Terminal) -> list[str]:
    """The lines that a person sees: each begins anew where it is cleared."""
    return [line.rpartition("\r\x1b[K")[2] for line in terminal.getvalue().split("\n")]


def told(task: int, what: str = "", done: int = 0) -> dict[str, Any]:
    data = {"task": task, "what": what, "done": done, "total": 9, "unit": "steps", "over": not what}
    return {"kind": "progress", "run_id": None, "time": 0.0, "actor": None, "data": data}


def test_in_a_terminal_the_last_line_says_what_takes_long() -> None:
    terminal = Terminal()
    with Screen(terminal) as screen:
        for event in (told(1, "starting"), told(1, "starting", 4)):
            screen.show(event, line(event))
        assert [text[10:] for text in shown(terminal)] == ["starting: 4 of 9 steps"]
        screen.show({"kind": "paused"}, "paused")
        assert [text[-22:] for text in shown(terminal)] == ["paused", "starting: 4 of 9 steps"]
        screen.show(told(2, "replaying"), line(told(2, "replaying")))
        assert [text[-23:] for text in shown(terminal)] == ["paused", "replaying: 0 of 9 steps"]
        screen.show(told(2), line(told(2)))
        assert shown(terminal)[-1].endswith("starting: 4 of 9 steps")
        screen.show(told(1), line(told(1)))
        assert shown(terminal) == ["paused", ""]
        screen.show(told(3, "loading" * 99), line(told(3, "loading" * 99)))
        assert 10 < len(shown(terminal)[-1]) < 100, "no longer than the terminal is wide"
    assert shown(terminal) == ["paused", ""], "nothing is left of what went on"
