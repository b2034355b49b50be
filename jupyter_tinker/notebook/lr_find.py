"""The learning rate finder, from Python: has the server sweep, waits, and shows what was found."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from .client import Client, RequestFailed, run_path

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

_EVERY = 0.25  # seconds between two looks at a sweep
_STAGES = {
    "copying": "copying the run",
    "measuring": "measuring its batches",
    "sweeping": "learning rates",
    "stopping": "stopping",
}


class LrFind:
    """What a sweep over learning rates has found, on a copy of a run.

    `suggestion` is the learning rate to use, or None where the loss did not fall, and `message`
    what is to be said of that. It is `steepest`, where the smoothed loss fell fastest, or a tenth
    of `lowest`, where it was lowest, if that is less. `rows` are the sweep's steps: the
    `learning_rate`, which `batch` it was made with, and of its losses per unit of weight, before
    the step, `loss`; `adjusted`, which has that of its batch at the sweep's start subtracted and
    the mean over the batches added; and `smoothed`, of that. None is a loss that is not finite.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.run_id: str = state["run_id"]
        self.step: int = state["step"]
        self.settings: dict[str, Any] = state["settings"]
        self.rows: list[dict[str, Any]] = state["points"]
        self.diverged: bool = state["diverged"]
        self.message: str | None = state["message"]
        found = state["suggestion"] or {}
        self.suggestion: float | None = found.get("learning_rate")
        self.steepest: float | None = found.get("steepest")
        self.lowest: float | None = found.get("lowest")

    @property
    def points(self) -> DataFrame:
        """`rows` as a table of pandas. Raises `ImportError` where that is not installed."""
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "The points are a DataFrame of pandas, which is not installed here: "
                "pip install pandas, or use rows, a list of dictionaries."
            ) from None
        return pandas.DataFrame(self.rows)

    def figure(self) -> Figure:
        """A plotly figure of the losses over the learning rates, with the suggestion."""
        import plotly.graph_objects as go

        made = go.Figure()
        rates = [row["learning_rate"] for row in self.rows]
        for key, name, style in (
            ("adjusted", "loss", {"opacity": 0.35, "line_width": 1}),
            ("smoothed", "loss, smoothed", {"line_width": 2.5}),
        ):
            values = [row[key] for row in self.rows]
            told = "learning rate %{x:.3g}: %{y:.4g}"
            made.add_scatter(
                x=rates, y=values, name=name, line_color=_BLUE, hovertemplate=told, **style
            )
        made.update_layout(title=str(self), height=420, margin={"t": 60, "b": 40})
        made.update_xaxes(title="learning rate", type="log", exponentformat="e")
        made.update_yaxes(title="loss, batches levelled", range=_window(self.rows))
        for rate, name, colour in (
            (self.suggestion, "suggestion", _GREEN),
            (self.lowest, "lowest", _GREY),
        ):
            if rate is not None:
                made.add_vline(rate, line_color=colour)
                # On a logarithmic axis the place of a text is its exponent.
                place = math.log10(rate)
                made.add_annotation(
                    text=name, x=place, y=1, yref="paper", yanchor="bottom", showarrow=False
                )
        return made

    def __str__(self) -> str:
        start = f"LR finder of {self.run_id} after step {self.step}"
        if self.suggestion is None:
            return f"{start}: no suggestion. {self.message or ''}".rstrip()
        words = (
            f"{start}: use {self.suggestion:.2g}. The loss fell fastest at {self.steepest:.2g} and "
            f"was lowest at {self.lowest:.2g}"
        )
        if self.diverged:
            words += f"; it diverged at {self.rows[-1]['learning_rate']:.2g}"
        return f"{words}. {self.message or ''}".rstrip()

    __repr__ = __str__

    def _repr_mimebundle_(self, *_: Any, **__: Any) -> dict[str, Any]:
        shown: dict[str, Any] = self.figure()._repr_mimebundle_()
        return {**shown, "text/plain": str(self)}


_BLUE, _GREEN, _GREY = "#0072B2", "#009E73", "#888888"


def _window(rows: list[dict[str, Any]]) -> list[float] | None:
    """The span of losses to show: a loss that diverges leaves it, and would flatten the rest."""
    losses = [row["smoothed"] for row in rows if row["smoothed"] is not None]
    if not losses:
        return None
    low, start = min(losses), losses[0]
    room = max(start - low, 0.02 * abs(start), 1e-3)
    return [low - 0.3 * room, start + room]


def find(client: Client, run_id: str, settings: dict[str, Any], *, progress: bool) -> LrFind:
    """Begin a sweep and wait for its end; if that is interrupted, the sweep is cancelled.

    Raises `RequestFailed` if it is refused, fails, or is cancelled by somebody else.
    """
    path = f"{run_path(run_id)}/lr_find"
    state = client.post(path, settings)
    try:
        state = _waited(client, path, state, progress)
    except KeyboardInterrupt:
        client.delete(path)
        raise
    if state["status"] != "done":
        gone = "The server was started anew, and knows nothing of the sweep."
        raise RequestFailed(str(state.get("message") or gone))
    return LrFind(state)


def _waited(client: Client, path: str, state: dict[str, Any], progress: bool) -> dict[str, Any]:
    from tqdm.auto import tqdm

    total = state["settings"]["steps"]
    with tqdm(total=total, unit="step", disable=not progress, leave=False) as bar:
        while state["status"] == "running":
            bar.set_description_str(_STAGES.get(state["stage"], ""), refresh=False)
            bar.n = len(state["points"])
            bar.refresh()
            time.sleep(_EVERY)
            state = client.get(path)
    return state
