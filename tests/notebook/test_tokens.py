"""Batches and their tokens, in Python and in a notebook."""

from __future__ import annotations

import math
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.runs import Run, resolve
from tests.notebook.conftest import THIRD
from tests.notebook.stub import Stub

TEXT = ["<b>", "Gr", "", "ü\n", "<|end|>"]
LOGPROBS = [None, -0.25, -3.0, -12.0, -1.0]


def batch(id: int, step: int, branch: int = 0, **more: Any) -> dict[str, Any]:
    sequence = {
        "number": 7,
        "loss_mean": 5.0,
        "counted": 3,
        "length": 5,
        "start": 0,
        "weighted_by": "weights",
        "tokens": [11, 12, 13, 14, 2],
        "text": TEXT,
        "special": [4],
        "logprobs": LOGPROBS,
        "weights": [None, 1.0, 0.5, 1.0, 0.0],
        "losses": [None, 0.25, 1.5, 12.0, 0.0],
        "sampled_logprobs": None,
    }
    return {
        "id": id,
        "step": step,
        "branch": branch,
        "stepped": True,
        "time": 1.7e9,
        "requests": 1,
        "sequences": 9,
        "tokens": 40,
        "loss_mean": 2.5,
        "loss_fn": "cross_entropy",
        "hardest": [{**sequence, **more}],
        "problem": None,
    }


@pytest.fixture
def run(stub: Stub, client: Client) -> Run:
    stub.runs[0].batches = [batch(30, 2, 1), batch(20, 3), batch(10, 2)]
    return resolve(client, THIRD)


class Spans(HTMLParser):
    """The spans of a text, and what stands in them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.spans: list[tuple[dict[str, Any], str]] = []
        self.tags: set[str] = set()
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self._inside = tag == "span"
        if self._inside:
            self.spans.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.spans[-1] = (self.spans[-1][0], self.spans[-1][1] + data)


def test_batches_are_a_list_and_a_table(stub: Stub, run: Run) -> None:
    found = run.batches(2)
    assert [one["id"] for one in found] == [30, 20]
    assert repr(found).splitlines()[1].split()[:5] == ["2", "1", "2.5000", "9", "40"]
    assert "<td>2.5000</td>" in found._repr_html_()
    stub.runs[0].batches[0]["stepped"] = False
    assert "2 (to come)" in repr(run.batches())
    stub.runs[0].batches = []
    assert repr(run.batches()) == "They are gone."


def test_the_newest_batch_or_that_of_a_step(stub: Stub, run: Run) -> None:
    assert (run.tokens().step, run.tokens().branch) == (2, 1)
    run.tokens(3, sequences=2, length=50)
    assert stub.asked[-1][1].endswith("batches/20?sequences=2&length=50")
    run.tokens(2, branch=0)
    assert "batches/10?" in stub.asked[-1][1]
    with pytest.raises(
        RequestFailed, match="No batch of step 9 is kept; there are those of the steps 2 to 3"
    ):
        run.tokens(9)
    with pytest.raises(RequestFailed, match="No batch of step 3 on branch 1"):
        run.tokens(3, branch=1)
    stub.runs[0].batches = []
    with pytest.raises(RequestFailed, match="They are gone"):
        run.tokens()


@pytest.fixture
def pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of it as is used: a table is its columns."""

    def table(rows: list[dict[str, Any]], columns: list[str]) -> dict[str, list[Any]]:
        return {name: [row[name] for row in rows] for name in columns}

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=table))


@pytest.mark.usefixtures("pandas")
def test_a_frame_has_a_row_for_each_token(run: Run) -> None:
    frame = run.tokens().frame()
    assert frame["loss"][1:] == [0.25, 3.0, 12.0, 1.0]
    assert frame["probability"][2] == pytest.approx(math.exp(-3))
    assert frame["text"] == TEXT
    assert frame["position"] == [0, 1, 2, 3, 4]
    assert frame["sequence"] == [7] * 5
    for column in ("logprob", "loss", "probability", "weight", "contribution"):
        assert math.isnan(frame[column][0])
    assert all(map(math.isnan, frame["sampled_logprob"]))


def test_a_frame_wants_pandas(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run.tokens()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        shown.frame()


def test_html_shades_tokens_and_takes_no_text_for_html(run: Run) -> None:
    page = Spans(run.tokens()._repr_html_())
    assert "b" not in page.tags
    tokens = page.spans[-5:]
    assert [text for _, text in tokens] == ["<b>", "Gr", "◌", "ü↵\n", "<|end|>"]
    shades = [float(re.findall(r"--t:([\d.]+)", made["style"])[0]) for made, _ in tokens]
    assert shades == [0, 0.04, 0.5, 1, 0.17]
    assert [made.get("class") for made, _ in tokens] == [
        "jt-idle", None, None, None, "jt-mark jt-idle",
    ]  # fmt: skip
    assert tokens[2][0]["title"] == "token 13, loss 3.000, probability 0.0498, weights 0.5"
    assert tokens[4][0]["title"].endswith("does not count")


@pytest.mark.usefixtures("pandas")
def test_what_is_not_known_is_not_shown(stub: Stub, run: Run) -> None:
    bare = {"text": None, "special": [], "logprobs": None, "losses": None, "loss_mean": None}
    stub.runs[0].batches = [batch(1, 1, **bare)]
    shown = run.tokens()
    assert [text for _, text in Spans(shown._repr_html_()).spans[-5:]] == [
        "[11]", "[12]", "[13]", "[14]", "[2]",
    ]  # fmt: skip
    assert "no loss" in repr(shown)
    assert all(map(math.isnan, shown.frame()["logprob"]))


def test_in_a_terminal_it_is_lines(stub: Stub, run: Run) -> None:
    lines = repr(run.tokens()).splitlines()
    assert lines[0] == "Step 2 of branch 1, cross_entropy: the 1 hardest of 9 sequences"
    assert lines[1] == "Sequence 7, loss 5.0000, 3 of 5 tokens count: <b>Grü↵<|end|>"
    stub.runs[0].batches = [batch(1, 1, start=60, length=99)]
    assert "tokens 60 to 64" in repr(run.tokens())
