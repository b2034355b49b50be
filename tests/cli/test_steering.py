"""The commands that steer runs, as a person types them, against a server that only remembers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.cli import TinkerApp
from jupyter_tinker.cli.watch import line
from jupyter_tinker.server.database import Database
from jupyter_tinker.server.schema import RunRow
from tests.cli.conftest import Command
from tests.conftest import REPOSITORY
from tests.notebook.conftest import FIRST, SECOND, THIRD
from tests.notebook.stub import KEY, Stub


def test_the_learning_rate(named: Stub, command: Command) -> None:
    start = f"learning rate of {THIRD}: "
    for argument, told in [
        ("x0.5", "5e-05, half of what the client asks, from its next step on"),
        ("x2", "0.0002, twice what the client asks, from its next step on"),
        ("x0.3", "3e-05, 0.3 times what the client asks, from its next step on"),
        ("1e-3", "0.001, whatever the client asks, from its next step on"),
        ("reset", "0.0001, as the client asks, from its next step on"),
    ]:
        assert command("lr", "latest", argument) == (0, f"{start}{told}\n", "")
    status, printed, _ = command("lr", "latest", "1e-5", "--ramp", "20")
    told = "1e-05, whatever the client asks, reached over its next 20 steps"
    assert (status, printed) == (0, f"{start}{told}\n")
    controls = named.run(THIRD).controls
    assert controls.learning_rate == 1e-5
    assert controls.ramp is not None
    assert controls.ramp.steps == 20


def test_the_learning_rate_of_a_run_without_steps(named: Stub, command: Command) -> None:
    _, printed, _ = command("lr", SECOND, "x0.5")
    assert printed == (
        f"learning rate of {SECOND}: half of what the client asks, from its next step on\n"
    )
    _, printed, _ = command("lr", SECOND, "reset")
    assert printed == f"learning rate of {SECOND}: as the client asks, from its next step on\n"


def test_clipping_and_decay(named: Stub, command: Command) -> None:
    end = "whatever the client asks, from its next step on\n"
    assert command("clip", "latest", "1.5")[1] == f"gradient clipping of {THIRD}: 1.5, {end}"
    assert command("clip", "latest", "0")[1] == f"gradient clipping of {THIRD}: none, {end}"
    assert command("decay", "latest", "0")[1] == f"weight decay of {THIRD}: 0, {end}"
    controls = named.run(THIRD).controls
    assert (controls.grad_clip_norm, controls.weight_decay) == (0.0, 0.0)
    for name in ("clip", "decay"):
        assert "as the client asks, from its next step on" in command(name, "latest", "reset")[1]
    controls = named.run(THIRD).controls
    assert (controls.grad_clip_norm, controls.weight_decay) == (None, None)


def test_pausing_resuming_and_stepping(named: Stub, command: Command) -> None:
    assert command("pause", "latest") == (0, f"{THIRD} is paused: ada paused it\n", "")
    assert named.run(THIRD).controls.paused
    assert command("resume", "latest") == (0, f"{THIRD} goes on\n", "")
    assert not named.run(THIRD).controls.paused
    told = f"{THIRD} makes its next 3 steps, and pauses then\n"
    assert command("step", "latest", "3") == (0, told, "")
    assert named.run(THIRD).controls.steps_until_pause == 3
    assert command("step", "latest", "1")[1] == f"{THIRD} makes its next step, and pauses then\n"


def test_rewinding_and_forking(named: Stub, command: Command) -> None:
    told = f"{THIRD} is at step 1 again, on branch 1\n"
    assert command("rewind", "latest", "1") == (0, told, "")
    command("rewind", "latest", "2", "--branch", "0")
    assert named.asked[-1][2] == {"step": 2, "branch": 0}
    assert command("fork", "latest", "2") == (0, f"tinker://{THIRD}/weights/step=2\n", "")
    path = f"tinker://{THIRD}/weights/step=2+branch=1"
    assert command("fork", "latest", "2", "--branch=1") == (0, f"{path}\n", "")


def test_finding_a_learning_rate(named: Stub, command: Command) -> None:
    found = {"learning_rate": 2e-3, "steepest": 2e-3, "lowest": 0.05}
    named.run(THIRD).found = [{"status": "done", "suggestion": found}]
    told = (
        f"LR finder of {THIRD} after step 2: use 0.002. The loss fell fastest at 0.002 and was "
        "lowest at 0.05.\n"
    )
    status, printed, bar = command("lr_find", "latest", "1e-5", "0.1", "--steps", "20")
    assert (status, printed) == (0, told)
    assert "0/20" in bar
    assert named.run(THIRD).sweep["settings"]["max"] == 0.1
    named.run(THIRD).found = [{"status": "failed", "message": "The engine died."}]
    status, printed, complained = command("lr_find", "latest")
    assert (status, printed) == (1, "")
    assert complained.endswith("jupyter tinker: The engine died.\n")
    assert command("lr_find")[2].startswith("jupyter tinker: usage: jupyter tinker lr_find RUN")


def test_guards(named: Stub, command: Command) -> None:
    def guards(*arguments: str) -> str:
        status, printed, complained = command("guard", "latest", *arguments)
        assert (status, complained) == (0, "")
        return printed.removeprefix(f"guards of {THIRD}: ").rstrip("\n")

    assert guards() == "none"
    assert guards("non-finite", "on") == "non-finite"
    assert guards("loss-spike") == "non-finite, loss-spike 6 50"
    assert guards("loss-spike", "4.5") == "non-finite, loss-spike 4.5 50"
    assert guards("loss-spike", "4", "20") == "non-finite, loss-spike 4 20"
    assert guards("non-finite", "off") == "loss-spike 4 20"
    assert guards("plateau", "0.01", "200") == "loss-spike 4 20, plateau 0.01 200"
    assert guards("loss-spike", "off") == "plateau 0.01 200"
    assert guards("plateau", "off") == "none"
    guards("plateau", "0", "9")
    assert guards("off") == guards() == "none"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["lr", "zzz", "x0.5"], "There is no run 'zzz'; `jupyter tinker runs` lists them."),
        (["lr", "aaaa", "x0.5"], "Several runs begin with 'aaaa'"),
        (["lr", "latest", "half"], "a learning rate is a number, and not 'half'"),
        (["lr", "latest", "xhalf"], "the factor behind x is a number, and not 'half'"),
        (["lr", "latest", "x0"], "learning_rate_scale must be a finite number above 0, and is 0.0"),
        (["lr", "latest", "-1"], "learning_rate must be a finite number of at least 0"),
        (["clip", "latest", "nan"], "grad_clip_norm must be a finite number"),
        (["decay", "latest", "much"], "the weight decay is a number, and not 'much'"),
        (["step", "latest", "0"], "steps must be a whole number from 1"),
        (["step", "latest", "1.5"], "the number of steps is a whole number, and not '1.5'"),
        (["rewind", "latest", "99"], "The run has no step 99 on this branch."),
        (["rewind", "latest", "-1"], "STEP is a whole number, and not '-1'"),
        (["guard", "latest", "plateau", "1", "x"], "PATIENCE is a whole number, and not 'x'"),
        (["guard", "latest", "loss-spike", "6", "2"], "window must be a whole number from 5"),
        (["pause", "latest", "--key", "tml-wrong"], "This key opens nothing here."),
    ],
)
def test_what_fails_says_why_in_a_sentence(
    named: Stub, command: Command, arguments: list[str], told: str
) -> None:
    status, printed, complained = command(*arguments)
    assert (status, printed) == (1, "")
    assert complained.startswith("jupyter tinker: ")
    assert told in complained
    assert complained.count("\n") == 1
    assert not named.run(THIRD).controls.changed_by, "nothing has changed"


_STEERING = ["lr", "clip", "decay", "pause", "resume", "step", "rewind", "fork", "guard", "watch"]


@pytest.mark.parametrize("name", _STEERING)
def test_a_command_that_is_misused_shows_its_use(named: Stub, command: Command, name: str) -> None:
    status, printed, complained = command(name, *["latest"] * 7)
    usage = TinkerApp.subcommands[name][0].usage
    assert (status, printed, complained) == (
        1,
        "",
        f"jupyter tinker: usage: jupyter tinker {usage}\n",
    )
    assert name == "watch" or command(name)[0] == 1
    assert named.asked == []


@pytest.mark.parametrize("name", _STEERING)
def test_help(command: Command, name: str) -> None:
    status, printed, _ = command(name, "--help")
    assert status == 0
    assert printed.startswith(f"Usage: jupyter tinker {name} ")
    assert "--url=" in printed
    assert name in command("--help")[1]


def test_without_a_server(command: Command) -> None:
    status, _, complained = command("pause", "latest")
    assert status == 1
    assert complained == (
        "jupyter tinker: No Jupyter server runs here; set TINKER_BASE_URL and TINKER_API_KEY to "
        "what `jupyter tinker` prints.\n"
    )


# Lists


def test_runs_of_a_server_have_a_state(stub: Stub, command: Command) -> None:
    stub.runs[1].controls = stub.runs[1].controls.pause("x")
    status, printed, _ = command("runs", "--url", stub.url, "--key", KEY)
    rows = [line.split() for line in printed.splitlines()]
    assert status == 0
    assert rows[0] == ["RUN", "BASE", "MODEL", "STEPS", "LOSS", "STATE", "CREATED"]
    assert rows[1][:5] == [THIRD, "tiny", "2", "2.5000", "training"]
    assert rows[2][:4] == [SECOND, "tiny", "0", "paused"]
    assert [row[0] for row in rows[1:]] == [THIRD, SECOND, FIRST]


def test_runs_without_a_server_are_those_of_the_database(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'tinker.db'}"
    _store_a_run(url)
    arguments = ("runs", f"--TinkerExtension.database_url={url}")
    status, printed, _ = command(*arguments)
    rows = [line.split() for line in printed.splitlines()]
    assert status == 0
    assert rows[0] == ["RUN", "BASE", "MODEL", "STEPS", "LOSS", "CREATED"]
    assert rows[1][:3] == ["s:train:0", "tiny", "0"]
    # One that the environment names and that does not answer is as none.
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9/tinker")
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    assert command(*arguments) == (0, printed, "")
    status, printed, complained = command("runs", "--url", "http://127.0.0.1:9/tinker")
    assert (status, printed) == (1, "")
    assert "does not answer as a Tinker server" in complained


def _store_a_run(url: str) -> None:
    row = RunRow(
        id="s:train:0",
        session_id="s",
        owner="ada",
        base_model="tiny",
        base_path="/models/tiny",
        architecture="LlamaForCausalLM",
        lora={"rank": 4},
        created_at=1.7e9,
        last_request_at=1.7e9,
    )
    Database(url).run(lambda db: db.add(row))


# Watching


def test_a_run_is_watched_until_it_ends(named: Stub, command: Command) -> None:
    numbers = {"loss_mean": 2.5, "grad_norm": 1.25, "learning_rate": 5e-5}
    named.happen(THIRD, "step", step=3, **numbers, learning_rate_requested=1e-4)
    named.happen(FIRST, "step", step=9, **numbers)
    named.happen(None, "engine_started")
    named.happen(THIRD, "paused", reason="ada paused it")
    named.happen(THIRD, "run_ended", reason="its session is over")
    status, printed, complained = command("watch", "latest", "--after", "0")
    assert (status, complained) == (0, "")
    assert [line.partition("  ")[2] for line in printed.splitlines()] == [
        "step 3, loss 2.5000, gradient norm 1.25, learning rate 5e-05 (asked: 0.0001)",
        "engine started",
        "paused by ada: ada paused it",
        "run ended: its session is over",
    ]


def test_a_run_that_has_ended_is_not_waited_for(named: Stub, command: Command) -> None:
    named.runs[0].ended = "its session is over"
    assert command("watch", "latest") == (0, f"{THIRD} has ended: its session is over\n", "")


@pytest.fixture
def watcher(named: Stub, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell that watches all runs from now on."""
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / "jupyter") for name in ("DATA", "CONFIG")}
    with subprocess.Popen(
        [sys.executable, "-m", "jupyter_tinker.cli", "watch"],
        env={**os.environ, **folders, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        named.wait_for_watchers()
        yield process
        process.kill()


def test_watching_all_runs_until_ctrl_c(named: Stub, watcher: subprocess.Popen[str]) -> None:
    assert watcher.stdout is not None
    named.happen(THIRD, "resumed")
    assert watcher.stdout.readline().endswith(f"  {THIRD}  resumed\n")
    named.drop_watchers()
    named.happen(None, "engine_died", reason="it was killed")
    assert watcher.stdout.readline().endswith("  engine died: it was killed\n")
    watcher.send_signal(signal.SIGINT)
    assert watcher.communicate(timeout=60) == ("", "")
    assert watcher.returncode == 0


def test_what_takes_long_is_one_line_each(named: Stub, watcher: subprocess.Popen[str]) -> None:
    assert watcher.stdout is not None
    loading = {"what": "loading tiny", "done": 0, "total": 20, "unit": "tensors"}
    named.progress[1] = loading
    assert watcher.stdout.readline().endswith("  loading tiny: 0 of 20 tensors\n")
    named.progress[1] = {**loading, "done": 9}
    del named.progress[1]
    named.happen(None, "engine_died", reason="it was killed")
    assert watcher.stdout.readline().endswith("  engine died: it was killed\n")


def test_lines_that_nobody_reads_any_more(named: Stub, watcher: subprocess.Popen[str]) -> None:
    assert watcher.stdout is not None
    assert watcher.stderr is not None
    watcher.stdout.close()
    named.happen(THIRD, "resumed")
    assert watcher.wait(60) == 0
    assert watcher.stderr.read() == ""


@pytest.mark.parametrize(
    ("kind", "data", "told"),
    [
        (
            "control_changed",
            {
                "before": {"learning_rate_scale": 1.0, "grad_clip_norm": None, "steps": 3},
                "after": {"learning_rate_scale": 0.5, "grad_clip_norm": 1.0, "steps": None},
            },
            "changed by ada: learning_rate_scale 1.0 -> 0.5, grad_clip_norm as asked -> 1.0, "
            "steps 3 -> none",
        ),
        ("resumed", {}, "resumed by ada"),
        ("rewound", {"step": 4, "branch": 2}, "rewound to step 4 by ada, now on branch 2"),
        ("forked", {"path": "tinker://x"}, "forked by ada: tinker://x"),
        (
            "guard",
            {"rule": "plateau", "reason": "no better loss", "paused": True},
            "guard plateau: no better loss; the run is paused",
        ),
        (
            "guard",
            {"rule": "non_finite", "reason": "inf", "paused": False},
            "guard non_finite: inf",
        ),
        (
            "run_revived",
            {"seconds": 1.234, "replayed": 5},
            "revived in 1.2 s; 5 steps made again",
        ),
        (
            "request_failed",
            {"request": "optim_step", "seq_id": 4, "error": "No.", "category": "user"},
            "optim_step number 4 failed: No.",
        ),
        (
            "run_ended",
            {"reason": "It could not.", "failed": True, "error": "No model."},
            "could not be created: No model.",
        ),
        ("run_unloaded", {}, "not in memory any more; it is brought back when it is needed"),
        ("history_trimmed", {"bytes": 5}, 'history trimmed by ada: {"bytes": 5}'),
        ("of a later version", {}, "of a later version by ada"),
        (
            "step",
            {"step": 1, "branch": 2, "skipped": "a nan"},
            "step 1 of branch 2, skipped: a nan",
        ),
        ("paused", {"reason": "a\x1b[31m\nb"}, "paused by ada: a [31m b"),
    ],
)
def test_lines(kind: str, data: dict[str, Any], told: str) -> None:
    event = {"id": 1, "run_id": "r", "time": 0.0, "kind": kind, "actor": "ada", "data": data}
    assert line(event).partition("  ")[2] == told
    assert line(event, with_run=True).partition("  ")[2] == f"r  {told}"
