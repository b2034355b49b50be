"""`%load_ext jupyter_tinker` and `%tinker` in an IPython shell, against the server that only
remembers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ipykernel.kernelapp import IPKernelApp
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

from jupyter_tinker.cli import TinkerApp
from jupyter_tinker.notebook.client import Client
from jupyter_tinker.notebook.connection import KEY as KEY_VARIABLE
from jupyter_tinker.notebook.connection import URL
from jupyter_tinker.notebook.kernel import TAGS
from jupyter_tinker.notebook.session import OWN
from jupyter_tinker.notebook.steering import COMMANDS
from jupyter_tinker.notebook.tables import RunList
from tests.notebook.conftest import FIRST, SECOND, THIRD
from tests.notebook.stub import KEY, Stub, StubRun
from tests.notebook.test_tokens import batch

Cell = Callable[[str], tuple[str, str]]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr(sys, "displayhook", sys.displayhook)
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    yield shell
    shell.run_line_magic("unload_ext", "jupyter_tinker")
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


@pytest.fixture
def cell(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> Cell:
    """Runs a cell; gives what it printed and what it complained of."""

    def run(source: str) -> tuple[str, str]:
        shell.run_cell(source)
        return tuple(capsys.readouterr())

    return run


@pytest.fixture
def loaded(named: Stub, cell: Cell) -> Stub:
    cell("%load_ext jupyter_tinker")
    named.asked.clear()
    return named


# Loading


def test_loading_says_what_was_found(named: Stub, cell: Cell, shell: InteractiveShell) -> None:
    told = f"Tinker at {named.url}: the engine starts with the first run\n"
    assert cell("%load_ext jupyter_tinker") == (told, "")
    assert shell.user_ns["tinker_server"] == Client(named.url, KEY)
    assert cell("%reload_ext jupyter_tinker") == (told, "")
    cell("%unload_ext jupyter_tinker")
    assert "Line magic function `%tinker` not found" in cell("%tinker")[1]


def test_loading_tags_the_sessions_of_this_kernel(
    named: Stub, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TAGS, "mine")
    cell("%load_ext jupyter_tinker")
    assert os.environ[TAGS] == "mine", "this is no kernel"
    IPKernelApp.instance(connection_file="kernel-b7.json")
    try:
        cell("%reload_ext jupyter_tinker")
        assert os.environ[TAGS] == "mine,jupyter-kernel=b7"
        os.environ[TAGS] = "yours"
        cell(f"%tinker connect {named.url} {KEY}")
        assert os.environ[TAGS] == "yours,jupyter-kernel=b7"
        cell("%unload_ext jupyter_tinker")
        assert os.environ[TAGS] == "yours"
    finally:
        IPKernelApp.clear_instance()


@pytest.mark.usefixtures("nowhere")
def test_without_a_server_one_can_be_connected_to(
    stub: Stub, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (URL, KEY_VARIABLE):  # so that they are restored
        monkeypatch.setenv(name, "")
    printed, _ = cell("%load_ext jupyter_tinker")
    assert printed.startswith("No Jupyter server runs here; set TINKER_BASE_URL")
    assert cell("%tinker runs")[1].startswith("UsageError: No Jupyter server runs here")
    printed, _ = cell(f"%tinker connect {stub.url}/ {KEY}")
    assert printed == f"Tinker at {stub.url}: the engine starts with the first run\n"
    assert (os.environ[URL], os.environ[KEY_VARIABLE]) == (stub.url, KEY), "the SDK finds it, too"
    assert THIRD in cell("%tinker runs")[0]


def test_a_key_is_asked_for_and_never_sent_to_another_server(
    loaded: Stub, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Stub()
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return KEY

    monkeypatch.setattr("getpass.getpass", answer)
    cell(f"%tinker connect {loaded.url}")
    assert asked == [], "the environment has the key to this one"
    assert other.url in cell(f"%tinker connect {other.url}")[0]
    assert asked == [f"Key to {other.url}: "]
    assert os.environ[URL] == other.url

    def nobody(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("getpass.getpass", nobody)
    assert "Give the key" in cell(f"%tinker connect {loaded.url}")[1]
    assert os.environ[URL] == other.url
    assert "opens nothing" in cell(f"%tinker connect {loaded.url} tml-wrong")[1]
    assert os.environ[URL] == other.url
    other.close()


def test_loading_is_light(named: Stub) -> None:
    # What a kernel has imported already does not count.
    code = (
        "import sys, ipykernel.ipkernel; from IPython.testing.globalipapp import start_ipython;"
        "shell = start_ipython(); before = set(sys.modules);"
        "shell.run_line_magic('load_ext', 'jupyter_tinker');"
        "shell.run_line_magic('tinker', 'runs');"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, _, modules = done.stdout.partition("\n")
    assert told.startswith("Tinker at http")
    new = {name.split(".")[0] for name in modules.split()}
    assert "jupyter_tinker" in new
    heavy = {"torch", "numpy", "pandas", "plotly", "tinker", "jupyter_server", "pydantic"}
    assert not new & heavy
    assert len(modules.split()) < 60, "what it imports takes time"


# Steering


def test_steering_says_what_the_command_line_says(loaded: Stub, cell: Cell) -> None:
    start = f"learning rate of {THIRD}: "
    half = "5e-05, half of what the client asks, from its next step on\n"
    assert cell("%tinker lr latest x0.5") == (f"{start}{half}", "")
    ramp = "1e-05, whatever the client asks, reached over its next 20 steps\n"
    assert cell("%tinker lr latest 1e-5 --ramp 20") == (f"{start}{ramp}", "")
    assert cell("%tinker lr latest 1e-5 --ramp=20") == (f"{start}{ramp}", "")
    cell("%tinker clip latest 1.5")
    cell("%tinker decay latest 0.1")
    controls = loaded.run(THIRD).controls
    assert (controls.learning_rate, controls.grad_clip_norm, controls.weight_decay) == (
        1e-5,
        1.5,
        0.1,
    )
    assert cell("%tinker pause latest") == (f"{THIRD} is paused: ada paused it\n", "")
    assert cell("%tinker resume latest") == (f"{THIRD} goes on\n", "")
    assert "makes its next 3 steps" in cell("%tinker step latest 3")[0]
    assert cell("%tinker guard latest non-finite on") == (f"guards of {THIRD}: non-finite\n", "")
    assert cell("%tinker rewind latest 1 --branch 0")[0] == (
        f"{THIRD} is at step 1 again, on branch 1\n"
    )


def test_names_of_python_can_stand_in_a_line(loaded: Stub, cell: Cell) -> None:
    cell(f"name, factor = {SECOND!r}, 0.25")
    cell("%tinker lr {name} x{factor}")
    assert loaded.run(SECOND).controls.learning_rate_scale == 0.25


def test_results_are_values(loaded: Stub, cell: Cell, shell: InteractiveShell) -> None:
    path = f"tinker://{THIRD}/weights/step=2"
    assert cell("path = %tinker fork latest 2") == ("", "")
    assert shell.user_ns["path"] == path
    assert path in cell("%tinker fork latest 2")[0]
    assert cell("nothing = %tinker pause latest")[0].endswith("ada paused it\n")
    assert shell.user_ns["nothing"] is None


def test_runs_are_a_table_and_a_list(loaded: Stub, cell: Cell, shell: InteractiveShell) -> None:
    printed, _ = cell("%tinker runs")
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == [THIRD, SECOND, FIRST]
    assert shell.run_cell("_[0].id").result == THIRD
    cell("runs = %tinker runs")
    runs = shell.user_ns["runs"]
    assert isinstance(runs, RunList)
    html = runs._repr_html_()
    assert html.count("<tr>") == 4
    assert f"<td>{THIRD}</td><td>tiny</td><td>2</td><td>2.5000</td><td>training</td>" in html


def test_a_table_shows_names_as_they_are_and_the_newest(loaded: Stub, cell: Cell) -> None:
    loaded.runs[0].base_model = "<script>"
    loaded.runs += [StubRun(f"{number}:train:0") for number in range(30)]
    cell("runs = %tinker runs")
    printed, _ = cell("print(runs); print(runs._repr_html_())")
    assert "<td>&lt;script&gt;</td>" in printed
    assert printed.count("and 13 older ones") == 2


def test_the_status(loaded: Stub, cell: Cell, shell: InteractiveShell) -> None:
    cell("status = %tinker")
    status = shell.user_ns["status"]
    assert repr(status).startswith(f"Tinker at {loaded.url}: the engine starts with")
    assert THIRD in repr(status)
    assert "<table>" in status._repr_html_()
    for engine, about, told in (
        ("running", {"reason": "cpu: there is no <GPU>"}, "cpu: there is no <GPU>"),
        ("starting", None, "the engine is starting"),
    ):
        answer = {"engine": engine, "busy_seconds": 0.0, "status": about}
        loaded.answers = [(200, json.dumps(answer).encode(), {})] * 2
        cell("status = %tinker")
        assert repr(shell.user_ns["status"]).startswith(f"Tinker at {loaded.url}: {told}\n")
        assert "<GPU>" not in shell.user_ns["status"]._repr_html_()


def test_keys(loaded: Stub, cell: Cell, shell: InteractiveShell) -> None:
    note = "This key is shown only now. Set it as TINKER_API_KEY.\n"
    assert cell("key = %tinker key create 'my laptop'") == (note, "")
    assert shell.user_ns["key"] == "tml-key-my laptop"
    assert "already; revoke it first" in cell("%tinker key create 'my laptop'")[1]
    assert "my laptop" in cell("%tinker key list")[0]
    assert cell("%tinker key revoke 'my laptop'") == (
        "The key 'my laptop' opens nothing any more.\n",
        "",
    )
    assert "revoked" in cell("%tinker key list")[0]


def test_a_learning_rate_is_found(loaded: Stub, cell: Cell, shell: InteractiveShell) -> None:
    found = {"learning_rate": 2e-3, "steepest": 2e-3, "lowest": 0.05}
    loaded.run(THIRD).found = [{"status": "done", "suggestion": found}]
    cell("found = %tinker lr_find latest 1e-5 1 --steps 20")
    assert shell.user_ns["found"].suggestion == 2e-3
    assert loaded.run(THIRD).sweep["settings"]["steps"] == 20
    loaded.run(THIRD).sweep["status"] = "running"
    _, complained = cell("%tinker lr_find latest")
    assert complained == f"UsageError: A sweep over run {THIRD} is under way.\n"


def test_the_tokens_of_a_batch(loaded: Stub, cell: Cell, shell: InteractiveShell) -> None:
    loaded.runs[0].batches = [batch(20, 3), batch(10, 2)]
    printed, complained = cell("%tinker tokens latest")
    assert "Step 3, cross_entropy: the 1 hardest of 9 sequences\n" in printed
    assert complained == ""
    cell("shown = %tinker tokens latest 2")
    assert shell.user_ns["shown"].step == 2


def test_the_panel(
    loaded: Stub, cell: Cell, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jupyter_tinker.notebook.panel", None)
    _, complained = cell("%tinker panel")
    assert complained.startswith("UsageError: There is no panel here: ")
    made: list[Any] = []
    module = SimpleNamespace(Panel=lambda run=None: made.append(run))
    monkeypatch.setitem(sys.modules, "jupyter_tinker.notebook.panel", module)
    monkeypatch.setitem(sys.modules, "ipywidgets", SimpleNamespace(VBox=len))
    assert cell("%tinker panel") == ("", "")
    cell("%tinker panel latest")
    assert made == [None, THIRD]
    cell(f"both = %tinker panel latest {FIRST[:6]}")
    assert made[2:] == [THIRD, FIRST]
    assert shell.user_ns["both"] == 2
    assert "no run 'zzz'" in cell("%tinker panel zzz")[1]

    def unbuilt(run: str | None = None) -> None:
        raise FileNotFoundError("panel.js is missing: run `make panel`.")

    module.Panel = unbuilt
    _, complained = cell("%tinker panel")
    assert complained == (
        "UsageError: There is no panel here: panel.js is missing: run `make panel`.\n"
    )


# What cannot be


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("steer latest", "There is no command 'steer'; there are connect, runs, key, "),
        ("lr zzz x0.5", "There is no run 'zzz'"),
        ("lr latest half", "a learning rate is a number, and not 'half'"),
        ("lr latest x0", "learning_rate_scale must be a finite number above 0, and is 0.0."),
        ("lr latest", "usage: %tinker lr RUN x0.5|1e-4|reset [--ramp N]"),
        ("lr latest x1 --ramp", "--ramp wants a number behind it"),
        ("lr latest x1 --ramp x", "--ramp is a whole number, and not 'x'"),
        ("lr latest x1 --branch 1", "lr has no option --branch"),
        ("rewind latest 99", "The run has no step 99"),
        ("pause 'latest", "no closing quotation"),
        ("runs all", "usage: %tinker runs"),
        ("tokens latest first", "STEP is a whole number, and not 'first'"),
        ("tokens latest 9", "They are gone."),
        ("key revoke never", "There is no key named 'never'."),
        ("key make me", "usage: %tinker key create NAME"),
        ("connect", "usage: %tinker connect URL [KEY]"),
    ],
)
def test_what_fails_is_one_sentence(loaded: Stub, cell: Cell, line: str, told: str) -> None:
    printed, complained = cell(f"%tinker {line}")
    assert printed == ""
    assert complained.startswith("UsageError: ")
    assert told in complained
    assert complained.count("\n") == 1
    assert not loaded.run(THIRD).controls.changed_by, "nothing has changed"


def test_a_server_that_is_gone(loaded: Stub, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL, "http://127.0.0.1:9/tinker")
    _, complained = cell("%tinker lr latest x0.5")
    assert complained.startswith(
        "UsageError: http://127.0.0.1:9/tinker does not answer as a Tinker server"
    )
    assert complained.count("\n") == 1


# Help and completion


@pytest.mark.parametrize("name", [*OWN, *COMMANDS])
def test_every_command_has_help(loaded: Stub, cell: Cell, name: str) -> None:
    printed, complained = cell(f"%tinker {name} --help")
    assert printed.startswith(f"%tinker {name}")
    assert complained == ""
    assert f"%tinker {name}" in cell("%tinker --help")[0]
    assert loaded.asked == []


def test_the_command_line_has_the_same_commands(cell: Cell) -> None:
    for name, command in COMMANDS.items():
        program, told = TinkerApp.subcommands[name]
        assert (program.usage, told) == (command.usage, command.summary)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("%tinker re", {"resume", "rewind"}),
        ("tinker re", {"resume", "rewind"}),
        ("path = %tinker fo", {"fork"}),
        ("%tinker lr ", {"latest", FIRST, SECOND, THIRD, "--ramp", "--help"}),
        ("%tinker lr aaaab", {SECOND, THIRD}),
        (f"%tinker lr {SECOND[:-1]}", {SECOND, THIRD}),
        ("%tinker lr la", {"latest"}),
        ("%tinker lr latest ", {"x0.5", "x2", "reset", "--ramp", "--help"}),
        ("%tinker lr latest x0.5 --r", {"--ramp"}),
        ("%tinker guard latest pl", {"plateau"}),
        ("%tinker panel latest aaaaaa", {FIRST}),
        ("%tinker tokens aaaaaa", {FIRST}),
        ("%tinker tokens latest ", {"--help"}),
        ("%tinker key re", {"revoke"}),
        ("%tinker key revoke ", {"laptop", "--help"}),
    ],
)
def test_completion(loaded: Stub, shell: InteractiveShell, line: str, offered: set[str]) -> None:
    loaded.keys = {"laptop": None, "old": 1.7e9}
    assert completed(shell, line) == {line[: line.rindex(" ") + 1] + word for word in offered}


def completed(shell: InteractiveShell, line: str) -> set[str]:
    """What Tab behind a line makes of it, as a kernel answers."""
    cell = f"import os\n{line}"
    with provisionalcompleter():
        found = list(shell.Completer.completions(cell, len(cell)))
    return {(cell[: one.start] + one.text + cell[one.end :]).partition("\n")[2] for one in found}


def test_completion_without_a_server_offers_nothing(
    loaded: Stub, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL, "http://127.0.0.1:9/tinker")
    assert "%tinker lr latest" not in completed(shell, "%tinker lr ")
    assert completed(shell, "%tinker paus") == {"%tinker pause"}
