"""The learning rate finder from Python, the magic and the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_tinker.notebook import lr_find
from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.commands import Misuse
from jupyter_tinker.notebook.lr_find import LrFind
from jupyter_tinker.notebook.runs import Run, resolve
from jupyter_tinker.notebook.sentences import words
from jupyter_tinker.notebook.steering import COMMANDS
from tests.notebook.conftest import THIRD
from tests.notebook.stub import Stub

SUGGESTION = {"learning_rate": 2e-3, "steepest": 2e-3, "lowest": 0.05}


def point(rate: float, loss: float | None) -> dict[str, Any]:
    smoothed = None if loss is None else loss + 0.5
    return {
        "learning_rate": rate, "batch": 0, "loss": loss, "adjusted": loss, "smoothed": smoothed,
    }  # fmt: skip


POINTS = [point(1e-5, 3.0), point(1e-3, 2.0), point(0.1, 40.0), point(0.4, None)]
DONE = {"status": "done", "points": POINTS, "diverged": True, "suggestion": SUGGESTION}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lr_find, "_EVERY", 0.001)


@pytest.fixture
def run(stub: Stub, client: Client) -> Run:
    stub.run(THIRD).found = [
        {"stage": "measuring"},
        {"stage": "sweeping", "points": POINTS[:2]},
        {"stage": None, **DONE},
    ]
    return resolve(client, THIRD)


def posted(stub: Stub) -> list[Any]:
    return [body for method, path, body in stub.asked if method == "POST" and "lr_find" in path]


def test_it_waits_and_gives_what_was_found(stub: Stub, run: Run) -> None:
    found = run.lr_find(min=1e-5, steps=40, progress=False)
    asked = {"min": 1e-5, "max": 1.0, "steps": 40, "batches": 8, "stop_at": 4.0}
    assert posted(stub) == [asked]
    assert (found.suggestion, found.steepest, found.lowest) == (2e-3, 2e-3, 0.05)
    assert (found.step, found.diverged, found.rows) == (2, True, POINTS)
    assert (
        str(found)
        == repr(found)
        == (
            f"LR finder of {THIRD} after step 2: use 0.002. The loss fell fastest at 0.002 and was "
            "lowest at 0.05; it diverged at 0.4."
        )
    )


def test_the_points_are_a_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run.lr_find(progress=False)
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: rows))
    assert found.points == POINTS
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        _ = found.points


def test_progress_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.lr_find()
    shown = capsys.readouterr().err
    for stage in ("copying the run", "measuring its batches", "learning rates"):
        assert stage in shown
    assert "2/60" in shown


def test_the_figure(run: Run) -> None:
    found = run.lr_find(progress=False)
    figure = found.figure()
    loss, smoothed = figure.data
    assert (loss.x, loss.y) == ((1e-5, 1e-3, 0.1, 0.4), (3.0, 2.0, 40.0, None))
    assert smoothed.y == (3.5, 2.5, 40.5, None)
    assert loss.opacity < 1
    assert figure.layout.xaxis.type == "log"
    low, high = figure.layout.yaxis.range
    assert low < 2.5 < 3.5 < high < 40  # the divergence does not flatten the valley
    assert {shape.x0 for shape in figure.layout.shapes} == {2e-3, 0.05}
    texts = {note.text: 10**note.x for note in figure.layout.annotations}
    assert texts == {"suggestion": pytest.approx(2e-3), "lowest": pytest.approx(0.05)}
    assert found._repr_mimebundle_()["text/plain"] == str(found)


def test_without_a_suggestion_it_says_why(stub: Stub, run: Run) -> None:
    stub.run(THIRD).found = [
        {"status": "done", "points": POINTS[:1], "message": "The loss did not fall."}
    ]
    found = run.lr_find(progress=False)
    assert found.suggestion is None
    assert str(found).endswith("after step 2: no suggestion. The loss did not fall.")
    assert not found.figure().layout.shapes


def test_a_sweep_without_points_has_a_figure(run: Run, stub: Stub) -> None:
    stub.run(THIRD).found = [{"status": "done", "points": [point(1e-6, None)], "diverged": True}]
    assert len(run.lr_find(progress=False).figure().data) == 2


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ({"status": "failed", "message": "The engine died."}, "The engine died"),
        ({"status": "cancelled", "message": "The sweep was cancelled."}, "was cancelled"),
        ({"status": "none"}, "The server was started anew"),
    ],
)
def test_one_that_does_not_come_to_its_end(
    stub: Stub, run: Run, end: dict[str, Any], told: str
) -> None:
    stub.run(THIRD).found = [end]
    with pytest.raises(RequestFailed, match=told):
        run.lr_find(progress=False)


def test_one_that_is_refused(stub: Stub, run: Run) -> None:
    stub.run(THIRD).sweep["status"] = "running"
    with pytest.raises(RequestFailed, match="under way") as refused:
        run.lr_find(progress=False)
    assert refused.value.status == 409
    assert not [asked for asked in stub.asked if asked[0] == "DELETE"]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody presses Ctrl-C while it is waited for."""

    def press(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lr_find, "time", SimpleNamespace(sleep=press))


@pytest.mark.usefixtures("interrupted")
def test_an_interrupt_cancels_the_sweep(stub: Stub, run: Run) -> None:
    with pytest.raises(KeyboardInterrupt):
        run.lr_find(progress=False)
    assert stub.run(THIRD).sweep["status"] == "cancelled"


@pytest.mark.usefixtures("interrupted")
def test_an_interrupt_of_the_command_is_a_sentence(stub: Stub, run: Run) -> None:
    with pytest.raises(RequestFailed, match="The sweep was cancelled"):
        COMMANDS["lr_find"].perform(lambda _: run, ["latest"])


def test_the_command(stub: Stub, run: Run) -> None:
    perform: Callable[..., Any] = COMMANDS["lr_find"].perform
    answer = perform(lambda _: run, ["latest", "1e-5", "1e-2"], steps=20, batches=None)
    assert posted(stub)[0] == {
        "min": 1e-5, "max": 1e-2, "steps": 20, "batches": 8, "stop_at": 4.0,
    }  # fmt: skip
    assert isinstance(answer.value, LrFind)
    assert answer.text == str(answer.value)
    for words_of_it in ([], ["latest", "1"], ["latest", "1", "2", "3"], ["latest", "a", "1"]):
        with pytest.raises(Misuse):
            perform(lambda _: run, words_of_it)


def test_what_is_told_of_it() -> None:
    event = {"kind": "lr_find_started", "actor": "ada", "data": {"settings": {}}}
    assert words(event) == "a sweep over learning rates began on a copy by ada"
    done = {"kind": "lr_find_done", "actor": "ada", "data": {**DONE, "message": None}}
    assert words(done) == "the sweep over learning rates suggests 0.002"
    for status, told in (
        ("done", "is done: Because."),
        ("failed", "failed: Because."),
        ("cancelled", "was cancelled"),
    ):
        data = {"status": status, "suggestion": None, "message": "Because."}
        assert words({**done, "data": data}) == f"the sweep over learning rates {told}"
