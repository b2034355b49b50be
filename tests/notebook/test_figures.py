"""What figures of runs hold; not how they look."""

from __future__ import annotations

import math
from typing import Any

import pytest

import jupyter_tinker
from jupyter_tinker.notebook import figures
from jupyter_tinker.notebook.client import Client
from jupyter_tinker.notebook.runs import Run, resolve
from tests.notebook.conftest import SECOND, THIRD
from tests.notebook.stub import Stub


@pytest.fixture
def run(stub: Stub, client: Client) -> Run:
    """Five steps, of which two were abandoned, and what was done to it."""
    numbers = {"grad_norm": 1.5, "learning_rate": 5e-5, "grad_clip_norm": 1.0}
    stub.run(THIRD).steps.clear()
    for step, loss in ((1, 4.0), (2, 3.0), (3, None), (4, 9.0)):
        stub.run(THIRD).step(step, loss_mean=loss, **numbers)
    run = resolve(client, THIRD)
    run.rewind(2)
    stub.run(THIRD).step(3, branch=1, loss_mean=2.0, **numbers)
    change = {"before": {"learning_rate_scale": 1.0}, "after": {"learning_rate_scale": 0.5}}
    stub.happen(THIRD, "control_changed", step=0, **change)
    stub.happen(THIRD, "paused", step=4, reason="<b>ada</b> paused it")
    stub.happen(THIRD, "rewound", step=2, branch=1)
    stub.happen(THIRD, "checkpoint_saved", step=2, path="p")
    return run


def traces(figure: Any) -> dict[str, Any]:
    """Curves by what they are of and their names; a name that stands for two has the last."""
    return {f"{trace.yaxis} {trace.name}": trace for trace in figure.data}


def test_the_curves_of_a_run(run: Run) -> None:
    found = traces(run.figure(smoothing=0.5))
    assert set(found) == {
        "y controls",
        "y rewind",
        "y pause",
        "y2 abandoned branch 0",
        "y2 loss",
        "y2 loss, smoothed",
        "y3 abandoned branch 0",
        "y3 gradient norm",
        "y3 clipped to",
        "y4 learning rate asked",
        "y4 learning rate used",
    }
    assert (found["y2 loss"].x, found["y2 loss"].y) == ((1, 2, 3), (4.0, 3.0, 2.0))
    assert found["y2 loss, smoothed"].y == pytest.approx((4.0, 5 / 1.5, 4.5 / 1.75))
    assert found["y2 abandoned branch 0"].x == (3, 4)
    assert found["y2 abandoned branch 0"].y == (None, 9.0)
    assert found["y3 gradient norm"].y == (1.5, 1.5, 1.5)
    assert found["y3 clipped to"].y == (1.0, 1.0, 1.0)
    assert found["y4 learning rate asked"].y == (1e-4, 1e-4, 1e-4)
    assert found["y4 learning rate used"].y == (5e-5, 5e-5, 5e-5)


def test_what_was_done_to_a_run_stands_between_its_steps(run: Run) -> None:
    figure = run.figure()
    found = traces(figure)
    assert found["y controls"].x == (0.5,)
    (told,) = found["y controls"].text
    assert told.startswith("after step 0, ")
    assert told.endswith("changed: learning_rate_scale 1.0 -&gt; 0.5")
    assert found["y rewind"].text[0].endswith("rewound to step 2 by ada, now on branch 1")
    assert "&lt;b&gt;ada&lt;/b&gt; paused it" in found["y pause"].text[0]
    lines = [(shape.x0, shape.x1, shape.yref) for shape in figure.layout.shapes]
    assert sorted(lines) == [(0.5, 0.5, "paper"), (2.5, 2.5, "paper"), (4.5, 4.5, "paper")]


def test_a_run_without_steps_has_an_empty_figure(client: Client) -> None:
    figure = resolve(client, SECOND).figure()
    assert all(trace.x is None or len(trace.x) == 0 for trace in figure.data)
    assert not figure.layout.shapes


def test_many_steps_are_drawn_by_the_graphics_card(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {trace.type for trace in run.figure().data}
    monkeypatch.setattr(figures, "_MANY", 4)
    assert kinds == {"scatter"}
    assert {trace.type for trace in run.figure().data} == {"scatter", "scattergl"}


@pytest.mark.usefixtures("named")
def test_several_runs_are_compared_where_they_are_now(stub: Stub, run: Run) -> None:
    stub.run(SECOND).step(1, loss_mean=7.0)
    figure = jupyter_tinker.compare(run, SECOND, smoothing=0)
    of_run = {trace.legendgroup for trace in figure.data}
    assert of_run == {THIRD, SECOND}
    smoothed = [trace for trace in figure.data if "smoothed" in trace.name]
    assert [(trace.name, trace.x, trace.y) for trace in smoothed] == [
        ("aaaabbbb:train:1, smoothed", (1, 2, 3), (4.0, 3.0, 2.0)),
        ("aaaabbbb:train:0, smoothed", (1,), (7.0,)),
    ]
    assert len({trace.line.color for trace in figure.data}) == 2
    assert [trace.showlegend for trace in figure.data].count(None) == 2, "a run, a name"


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_smoothing_keeps_what_is_constant_and_leaves_out_what_is_missing(smoothing: float) -> None:
    assert figures.smooth([2.0, None, 2.0], smoothing) == [2.0, None, pytest.approx(2.0)]
    assert figures.smooth([], smoothing) == []


@pytest.mark.parametrize("smoothing", [1.0, -0.1, math.nan])
def test_smoothing_that_cannot_be(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing must be at least 0 and below 1"):
        figures.smooth([1.0], smoothing)
