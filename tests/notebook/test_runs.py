"""Runs as Python objects, against a server that only remembers what it was told."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import jupyter_tinker
from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.lineage import abandoned
from jupyter_tinker.notebook.runs import Run, all_runs, resolve
from tests.notebook.conftest import FIRST, SECOND, THIRD
from tests.notebook.stub import KEY, Stub


@pytest.fixture
def run(client: Client) -> Run:
    return resolve(client, THIRD)


def posted(stub: Stub) -> list[tuple[str, Any]]:
    return [(path, body) for method, path, body in stub.asked if method == "POST"]


# Which runs there are


@pytest.mark.usefixtures("named")
def test_runs_of_the_package() -> None:
    assert [run.id for run in jupyter_tinker.runs()] == [THIRD, SECOND, FIRST]
    assert jupyter_tinker.run().id == THIRD
    assert jupyter_tinker.run("aaaaaaaa").id == FIRST
    assert isinstance(jupyter_tinker.run(), jupyter_tinker.Run)
    with pytest.raises(AttributeError, match="no attribute 'ruins'"):
        _ = jupyter_tinker.ruins


@pytest.mark.usefixtures("nowhere")
def test_a_server_can_be_named(stub: Stub) -> None:
    assert len(jupyter_tinker.runs(stub.url, KEY)) == 3
    assert jupyter_tinker.run(FIRST, url=stub.url, key=KEY).id == FIRST


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (SECOND, SECOND),
        ("aaaaa", FIRST),
        ("latest", THIRD),
        ("latest~0", THIRD),
        ("latest~2", FIRST),
    ],
)
def test_names_of_runs(client: Client, name: str, found: str) -> None:
    assert resolve(client, name).id == found


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("aaaabbbb", f"Several runs begin with 'aaaabbbb': {THIRD}, {SECOND}; give more"),
        ("zzz", "There is no run 'zzz'"),
        ("", "There is no run ''"),
        ("latest~3", "There is no run 'latest~3': this server has 3 runs"),
        ("latest~x", "There is no run 'latest~x'"),
        ("latest~", "There is no run 'latest~'"),
    ],
)
def test_names_that_are_no_runs(client: Client, name: str, told: str) -> None:
    with pytest.raises(RequestFailed, match=told):
        resolve(client, name)


def test_an_id_is_a_name_even_if_others_begin_with_it(stub: Stub, client: Client) -> None:
    stub.runs[0].id, stub.runs[1].id = "a:train:1", "a:train:10"
    assert resolve(client, "a:train:1").id == "a:train:1"


def test_more_runs_than_a_page_holds(stub: Stub, client: Client) -> None:
    stub.page = 2
    assert [run.id for run in all_runs(client)] == [THIRD, SECOND, FIRST]
    stub.runs = []
    assert all_runs(client) == []


# What they did


def test_what_a_run_says_of_itself(stub: Stub, run: Run) -> None:
    assert run.state == "training"
    stub.run(THIRD).state = "idle"
    assert run.state == "idle"
    assert run.info["branch"] == 0
    assert repr(run) == f"<Run {THIRD}: tiny, step 2>"


def test_steps_and_history(stub: Stub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["step"] for row in run.steps()] == [1, 2]
    assert [row["step"] for row in run.steps(after=10)] == [2]
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: ("df", rows)))
    assert run.history() == ("df", run.steps())
    run.rewind(1)
    assert run.history() == ("df", run.steps()[:1])
    assert run.history(branch=0) == run.history(all_branches=True) == ("df", run.steps())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas, or use steps\(\)"):
        run.history()


def test_the_line_of_a_run_leaves_out_what_was_abandoned(stub: Stub, run: Run) -> None:
    steps = stub.run(THIRD).step
    steps(2, skipped="not finite")
    steps(3)
    steps(4)
    run.rewind(2)
    steps(3, branch=1)
    steps(4, branch=1)
    run.rewind(3, branch=0)
    steps(4, branch=2)

    def told(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
        return [(row["branch"], row["step"]) for row in rows]

    assert len(run.steps()) == 8
    assert told(run.line()) == [(0, 1), (0, 2), (0, 2), (0, 3), (2, 4)]
    assert told(run.line(branch=1)) == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert told(run.line(branch=0)) == [(0, 1), (0, 2), (0, 2), (0, 3), (0, 4)]
    run.rewind(0, branch=0)
    assert run.line() == []
    left = abandoned(run.steps(), run.line(branch=2))
    assert [told(rows) for rows in left] == [[(0, 4)], [(1, 3), (1, 4)]]


def test_numbers_of_steps_that_began_anew(stub: Stub, run: Run) -> None:
    for number in (3, 1, 2, 3):  # weights were loaded after the third
        stub.run(THIRD).step(number)
    run.rewind(2)
    assert [row["step"] for row in run.line()] == [1, 2, 3, 1, 2]


def test_events(stub: Stub, run: Run) -> None:
    stub.happen(FIRST, "step", step=9)
    stub.happen(THIRD, "step", step=3)
    events = run.events(after=0)
    assert next(events)["step"] == 3
    events.close()
    stub.happen(THIRD, "resumed")
    stub.happen(FIRST, "resumed")
    assert [event["kind"] for event in run.past_events()] == ["resumed"]


# Steering


def test_the_learning_rate(stub: Stub, run: Run) -> None:
    assert run.controls.learning_rate(scale=0.5)["learning_rate_scale"] == 0.5
    controls = run.controls.learning_rate(value=1e-5, ramp_steps=10)
    assert (controls["learning_rate_scale"], controls["learning_rate"]) == (1.0, 1e-5)
    assert controls["ramp"] == {"scale": 0.5, "offset": 0.0, "start": 2, "steps": 10}
    assert run.controls.learning_rate(value=None)["learning_rate"] is None
    for wrong in ({}, {"scale": 1.0, "value": 1.0}):
        with pytest.raises(ValueError, match="one of scale and value"):
            run.controls.learning_rate(**wrong)
    with pytest.raises(RequestFailed, match="learning_rate_scale must be a finite number above 0"):
        run.controls.learning_rate(scale=0)
    assert posted(stub)[:2] == [
        (f"runs/{THIRD.replace(':', '%3A')}/controls", {"learning_rate_scale": 0.5}),
        (
            f"runs/{THIRD.replace(':', '%3A')}/controls",
            {"learning_rate": 1e-5, "ramp_steps": 10},
        ),
    ]


def test_clipping_decay_and_reset(stub: Stub, run: Run) -> None:
    assert run.controls.grad_clip_norm(1.0)["grad_clip_norm"] == 1.0
    assert run.controls.weight_decay(0.1)["weight_decay"] == 0.1
    assert "weight_decay=0.1" in repr(run.controls)
    controls = run.controls.reset()
    assert controls == run.controls.get()
    assert (controls["grad_clip_norm"], controls["weight_decay"]) == (None, None)
    assert run.controls.grad_clip_norm(0.0)["grad_clip_norm"] == 0.0
    assert run.controls.grad_clip_norm(None)["grad_clip_norm"] is None


def test_guards(run: Run) -> None:
    spike = {"factor": 4.0, "window": 30}
    assert run.controls.guards(non_finite=True, loss_spike=spike)["guards"]["loss_spike"] == spike
    guards = run.controls.guards(loss_spike=None)["guards"]
    assert guards == {"non_finite": True, "loss_spike": None, "plateau": None}


def test_pausing_and_running_steps(stub: Stub, run: Run) -> None:
    assert run.pause().state == "paused"
    assert run.resume().state == "training"
    assert run.run_steps(3).controls.get()["steps_until_pause"] == 3
    with pytest.raises(RequestFailed, match="steps must be a whole number"):
        run.run_steps(0)


def test_rewinding_and_forking(stub: Stub, run: Run) -> None:
    made = {"number": 1, "parent": 0, "step": 1, "actor": "ada"}
    assert run.rewind(1).info["branches"] == [made]
    run.rewind(2, branch=0)
    assert run.fork(2) == f"tinker://{THIRD}/weights/step=2"
    assert run.fork(2, branch=1) == f"tinker://{THIRD}/weights/step=2+branch=1"
    assert [body for _, body in posted(stub)] == [
        {"step": 1},
        {"step": 2, "branch": 0},
        {"step": 2},
        {"step": 2, "branch": 1},
    ]
    with pytest.raises(RequestFailed, match="no step 99"):
        run.rewind(99)
