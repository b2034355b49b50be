"""The last batches of a run, and their hardest sequences with tokens shaded by loss."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

from .client import Client, RequestFailed, run_path
from .tables import Table, when

if TYPE_CHECKING:
    from pandas import DataFrame

    _Batches = list[dict[str, Any]]
else:
    _Batches = list

_MOST = 100  # batches that the server lists
_DARKEST = 6.0  # the loss of a token, in nats, from which on all look alike
_LINE = 70  # characters of a sequence in a terminal

# What would not be seen, or would move what stands around it.
_SIGNS = {"\n": "↵\n", "\r": "␍", "\t": "⇥\t"}
_SIGNS |= {chr(code): chr(0x2400 + code) for code in range(32) if chr(code) not in _SIGNS}
_SHOWN = str.maketrans(_SIGNS)

_STYLE = """<style>
.jt-tokens { --jt-hard: oklch(0.71 0.17 55); }
[data-jp-theme-light="false"] .jt-tokens { --jt-hard: oklch(0.49 0.15 45); }
.jt-tokens p { white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4;
  margin: 2px 0 12px;
  font-family: var(--jp-code-font-family, monospace); line-height: 1.7; }
.jt-tokens span { unicode-bidi: isolate; border-radius: 2px; background: color-mix(in oklab,
  var(--jt-hard) calc(var(--t) * 100%), var(--jp-layout-color1, #fff)); }
.jt-tokens .jt-idle { opacity: 0.55; background: none; }
.jt-tokens .jt-mark { outline: 1px dotted; outline-offset: -1px; }
</style>"""


class BatchList(_Batches):
    """Batches, newest first: a list of dictionaries that shows itself as a table. `problem` says
    why there are none, where something is wrong."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["batches"])
        self.problem: str | None = answer["problem"]

    def __repr__(self) -> str:
        return repr(self._table) if self else self._none

    def _repr_html_(self) -> str:
        return self._table._repr_html_() if self else f"<p>{escape(self._none)}</p>"

    @property
    def _none(self) -> str:
        return self.problem or "This run has not been trained on anything yet."

    @property
    def _table(self) -> Table:
        head = ("STEP", "BRANCH", "LOSS", "SEQUENCES", "TOKENS", "WHEN")
        return Table(head, [_cells(batch) for batch in self])


def _cells(batch: dict[str, Any]) -> tuple[str, ...]:
    counts = (str(batch["sequences"]), str(batch["tokens"]))
    step = f"{batch['step']}" if batch["stepped"] else f"{batch['step']} (to come)"
    return (step, str(batch["branch"]), _short(batch["loss_mean"]), *counts, when(batch["time"]))


class Tokens:
    """The hardest sequences of a batch, hardest first. A notebook shows them with their tokens
    shaded by loss."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.step: int = answer["step"]
        self.branch: int = answer["branch"]
        self.loss_fn: str | None = answer["loss_fn"]
        self.problem: str | None = answer["problem"]
        # As the server gives them: `docs/api.md` says what is in them.
        self.sequences: list[dict[str, Any]] = answer["hardest"]
        self._of: int = answer["sequences"]

    def frame(self) -> DataFrame:
        """A table of pandas with a row for each token. `loss` is -logprob, in nats, and
        `contribution` what the token added to the loss; both are NaN where they are not known.
        Raises `ImportError` where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "A frame is a DataFrame of pandas, which is not installed here: "
                "pip install pandas, or use .sequences, a list of dictionaries."
            ) from None
        rows = [row for sequence in self.sequences for row in _rows(sequence)]
        return pandas.DataFrame(rows, columns=list(_COLUMNS))

    @property
    def _title(self) -> str:
        shown = len(self.sequences)
        which = f"the {shown} hardest of {self._of}" if shown < self._of else f"{shown}"
        branch = f" of branch {self.branch}" if self.branch else ""
        return f"Step {self.step}{branch}, {self.loss_fn}: {which} sequences"

    def __repr__(self) -> str:
        lines = [f"{_heading(one)}: {_line(one)}" for one in self.sequences]
        return "\n".join([self._title, *lines, *filter(None, [self.problem])])

    def _repr_html_(self) -> str:
        parts = [f"<strong>{escape(self._title)}</strong> {_legend()}"]
        for one in self.sequences:
            parts.append(f"<div>{escape(_heading(one))}</div><p>{_shaded(one)}</p>")
        if self.problem:
            parts.append(f"<div>{escape(self.problem)}</div>")
        return f'{_STYLE}<div class="jt-tokens">{"".join(parts)}</div>'


_COLUMNS = (
    "sequence",
    "position",
    "token",
    "text",
    "logprob",
    "loss",
    "probability",
    "weight",
    "contribution",
    "sampled_logprob",
)


def _rows(one: dict[str, Any]) -> list[dict[str, Any]]:
    def at(column: str, place: int) -> float:
        values = one[column]
        return math.nan if values is None or values[place] is None else values[place]

    rows = []
    for place, token in enumerate(one["tokens"]):
        logprob = at("logprobs", place)
        rows.append(
            {
                "sequence": one["number"],
                "position": one["start"] + place,
                "token": token,
                "text": one["text"][place] if one["text"] is not None else None,
                "logprob": logprob,
                "loss": -logprob,
                "probability": math.exp(logprob),
                "weight": at("weights", place),
                "contribution": at("losses", place),
                "sampled_logprob": at("sampled_logprobs", place),
            }
        )
    return rows


def batches(client: Client, run_id: str, limit: int) -> BatchList:
    """A run's last batches. Raises `RequestFailed`."""
    return BatchList(client.get(f"{run_path(run_id)}/batches?limit={limit}"))


def tokens(
    client: Client, run_id: str, step: int | None, branch: int | None, sequences: int, length: int
) -> Tokens:
    """The newest batch, or that of a step. Raises `RequestFailed`."""
    found = batches(client, run_id, 1 if step is None and branch is None else _MOST)
    chosen = [
        batch
        for batch in found
        if step in (None, batch["step"]) and branch in (None, batch["branch"])
    ]
    if not chosen:
        raise RequestFailed(_missing(found, step, branch))
    query = f"sequences={sequences}&length={length}"
    return Tokens(client.get(f"{run_path(run_id)}/batches/{chosen[0]['id']}?{query}"))


def _missing(found: BatchList, step: int | None, branch: int | None) -> str:
    if not found:
        return found._none
    kept = sorted({batch["step"] for batch in found})
    what = "" if step is None else f" of step {step}"
    what += "" if branch is None else f" on branch {branch}"
    return f"No batch{what} is kept; there are those of the steps {kept[0]} to {kept[-1]}."


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _heading(one: dict[str, Any]) -> str:
    cut = len(one["tokens"]) < one["length"]
    where = f", tokens {one['start']} to {one['start'] + len(one['tokens']) - 1}" if cut else ""
    loss = "no loss" if one["loss_mean"] is None else f"loss {one['loss_mean']:.4f}"
    counted = f"{one['counted']} of {one['length']} tokens count"
    return f"Sequence {one['number']}, {loss}, {counted}{where}"


def _line(one: dict[str, Any]) -> str:
    if one["text"] is None:
        text = " ".join(map(str, one["tokens"]))
    else:
        text = "".join(one["text"]).replace("\n", "↵").replace("\t", "⇥")
    return text if len(text) <= _LINE else f"{text[: _LINE - 1]}…"


def _shaded(one: dict[str, Any]) -> str:
    marks = set(one["special"])
    return "".join(_span(one, place, place in marks) for place in range(len(one["tokens"])))


def _span(one: dict[str, Any], place: int, mark: bool) -> str:
    token, text = one["tokens"][place], "" if one["text"] is None else one["text"][place]
    shown = text.translate(_SHOWN) or (f"[{token}]" if one["text"] is None else "◌")
    logprob = None if one["logprobs"] is None else one["logprobs"][place]
    weight = one["weights"][place]
    told = [f"token {token}"]
    if logprob is not None:
        told += [f"loss {-logprob:.3f}", f"probability {math.exp(logprob):.3g}"]
    if weight is not None:
        told += [f"{one['weighted_by'] or 'weight'} {weight:.3g}" if weight else "does not count"]
    classes = [
        *(["jt-mark"] if mark else []),
        *([] if weight and logprob is not None else ["jt-idle"]),
    ]
    named = f' class="{" ".join(classes)}"' if classes else ""
    share = 0.0 if logprob is None else min(max(-logprob / _DARKEST, 0.0), 1.0)
    return f'<span{named} style="--t:{share:.2f}" title="{", ".join(told)}">{escape(shown)}</span>'


def _legend() -> str:
    shown = "".join(
        f'<span style="--t:{loss / _DARKEST:.2f}">&nbsp;{name}&nbsp;</span>'
        for loss, name in ((0, "0"), (2, "2"), (4, "4"), (_DARKEST, f"{_DARKEST:g} and more"))
    )
    return f"loss of a token, in nats: {shown}; pale: does not count"
