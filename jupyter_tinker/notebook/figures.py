"""Pictures of runs: plotly figures of what the server has kept, as it is when they are made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .lineage import Rows, abandoned
from .sentences import words

if TYPE_CHECKING:
    from .runs import Run

# Okabe and Ito's colours, which most people can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_GREY = "#888888"
_DOTTED = {"line_color": _GREY, "line_dash": "dot"}
_MARKS = {
    "control_changed": ("controls", "#D55E00", "diamond"),
    "rewound": ("rewind", "#CC79A7", "triangle-left"),
    "guard": ("guard", "#E69F00", "x"),
    "paused": ("pause", "#999999", "line-ns-open"),
    "resumed": ("resume", "#999999", "triangle-right-open"),
    "run_revived": ("revival", "#56B4E9", "circle"),
}
_STRIP, _LOSS, _NORM, _RATE = 1, 2, 3, 4  # rows of the figure
_MANY = 20_000  # steps, from which on the browser is spared an element for each


def figure(run: Run, *, smoothing: float = 0.9) -> go.Figure:
    """One run: loss, gradient norm, learning rate, and what was done to it."""
    rows = run.steps()
    kept = run.line(rows)
    made = _empty(run.id, len(rows))
    for left in abandoned(rows, kept):
        name = f"abandoned branch {left[0]['branch']}"
        _add_curve(made, left, "loss_mean", _LOSS, name=name, line_color=_GREY, opacity=0.4)
        _add_curve(made, left, "grad_norm", _NORM, name=name, line_color=_GREY, opacity=0.4)
    blue, orange, green = _COLOURS[:3]
    _add_loss(made, kept, smoothing, colour=blue, name="loss")
    _add_curve(made, kept, "grad_norm", _NORM, name="gradient norm", line_color=green)
    if any(row.get("grad_clip_norm") for row in kept):
        _add_curve(made, kept, "grad_clip_norm", _NORM, name="clipped to", **_DOTTED)
    _add_curve(made, kept, "learning_rate_requested", _RATE, name="learning rate asked", **_DOTTED)
    _add_curve(made, kept, "learning_rate", _RATE, name="learning rate used", line_color=orange)
    _add_marks(made, run.past_events())
    return made


def compare(runs: Sequence[Run], *, smoothing: float = 0.9) -> go.Figure:
    """Several runs in one figure, each on the steps that led to where it is."""
    lines = [run.line() for run in runs]
    made = _empty("", sum(map(len, lines)), strip=False)
    for number, (run, rows) in enumerate(zip(runs, lines, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        name = _short(run.id)
        group = {"legendgroup": run.id}
        _add_loss(made, rows, smoothing, colour=colour, name=name, **group)
        for key, place in (("grad_norm", _NORM), ("learning_rate", _RATE)):
            more = {"line_color": colour, "showlegend": False, **group}
            _add_curve(made, rows, key, place, name=name, **more)
    return made


def smooth(values: Sequence[float | None], smoothing: float) -> list[float | None]:
    """Exponential moving averages: each the mean of what came before, weighted by `smoothing`
    to the power of the distance. What is None is left out of them."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, and is {smoothing}")
    total = weight = 0.0
    smoothed: list[float | None] = []
    for value in values:
        if value is None:
            smoothed.append(None)
            continue
        total = smoothing * total + value
        weight = smoothing * weight + 1.0
        smoothed.append(total / weight)
    return smoothed


def _empty(title: str, points: int, *, strip: bool = True) -> go.Figure:
    heights = [0.05 if strip else 0.001, 0.45, 0.25, 0.25]
    made = make_subplots(
        rows=4, row_heights=heights, shared_xaxes=True, vertical_spacing=0.03, figure=None
    )
    made.update_layout(
        height=640,
        title=title or None,
        hovermode="closest",
        margin={"t": 60 if title else 30, "b": 40},
        legend={"orientation": "h", "y": -0.08},
        meta={"scattergl": points > _MANY},
    )
    made.update_yaxes(visible=False, row=_STRIP)
    for row, name in ((_LOSS, "loss"), (_NORM, "gradient norm"), (_RATE, "learning rate")):
        made.update_yaxes(title_text=name, row=row)
    made.update_yaxes(exponentformat="e", rangemode="tozero", row=_RATE)
    made.update_xaxes(title_text="step", row=_RATE)
    return made


def _add_loss(
    made: go.Figure, rows: Rows, smoothing: float, *, colour: str, name: str, **more: Any
) -> None:
    """As it was, faint, and smoothed."""
    losses = [row["loss_mean"] for row in rows]
    faint = {"line_color": colour, "opacity": 0.3, "showlegend": False, **more}
    _add(made, rows, losses, _LOSS, name=name, **faint)
    strong = {"line_color": colour, **more}
    _add(made, rows, smooth(losses, smoothing), _LOSS, name=f"{name}, smoothed", **strong)


def _add_curve(made: go.Figure, rows: Rows, key: str, place: int, **style: Any) -> None:
    _add(made, rows, [row.get(key) for row in rows], place, **style)


def _add(
    made: go.Figure, rows: Rows, values: Sequence[float | None], place: int, **style: Any
) -> None:
    kind = go.Scattergl if made.layout.meta["scattergl"] else go.Scatter
    steps = [row["step"] for row in rows]
    told = "step %{x}: %{y:.4g}"
    made.add_trace(
        kind(x=steps, y=list(values), mode="lines", hovertemplate=told, **style), row=place, col=1
    )


def _add_marks(made: go.Figure, events: Sequence[dict[str, Any]]) -> None:
    """Lines between the steps where something was done, with a sign on top that says what."""
    shapes = []
    for kind, (name, colour, symbol) in _MARKS.items():
        found = [event for event in events if event["kind"] == kind]
        if not found:
            continue
        # What is done after a step shows from the next one on.
        places = [(event["step"] or 0) + 0.5 for event in found]
        made.add_trace(
            go.Scatter(
                x=places,
                y=[0] * len(found),
                text=[_told(event) for event in found],
                name=name,
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 10, "line_width": 2},
                hovertemplate="%{text}<extra></extra>",
                cliponaxis=False,
            ),
            row=_STRIP,
            col=1,
        )
        line = {"color": colour, "width": 1, "dash": "dot"}
        across = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "line": line}
        shapes += [{**across, "x0": place, "x1": place} for place in places]
    made.update_layout(shapes=shapes)


def _told(event: dict[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    return escape(f"after step {event['step'] or 0}, {at}: {words(event)}")


def _short(run_id: str) -> str:
    session, colon, rest = run_id.partition(":")
    return f"{session[:8]}{colon}{rest}"
