"""What a run is asked while it trains, from Python and by command, against a server that only
remembers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_tinker.notebook import previews
from jupyter_tinker.notebook.client import Client, RequestFailed
from jupyter_tinker.notebook.commands import Misuse
from jupyter_tinker.notebook.runs import Run, resolve
from jupyter_tinker.notebook.sentences import words
from jupyter_tinker.notebook.steering import COMMANDS
from tests.notebook.conftest import THIRD
from tests.notebook.stub import Stub


@pytest.fixture
def run(client: Client) -> Run:
    return resolve(client, THIRD)


def test_what_is_not_named_stays(stub: Stub, run: Run) -> None:
    run.preview(prompts=["Hello", "And you?"], every=50, temperature=0.5)
    assert run.preview(every=None, max_tokens=8)["prompts"] == ["Hello", "And you?"]
    preview = stub.run(THIRD).preview
    assert (preview.every, preview.max_tokens, preview.temperature) == (None, 8, 0.5)
    with pytest.raises(RequestFailed, match="prompts must be a list of at most 5"):
        run.preview(prompts=["a"] * 6)
    assert stub.run(THIRD).preview == preview


def test_asking_now_waits_for_the_answers(stub: Stub, run: Run) -> None:
    with pytest.raises(RequestFailed, match="no prompts"):
        run.preview_now()
    run.preview(prompts=["Hello"])
    stub.run(THIRD).answer(1)
    asked = run.preview_now()
    assert (asked["step"], asked["actor"]) == (2, "ada")
    assert asked["answers"][0]["text"] == "Hello 2"


def test_answers_as_a_table(stub: Stub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=lambda rows: rows))
    assert run.previews() == []
    run.preview(prompts=["Hello", "And you?"])
    stub.page = 2
    for step in (1, 2, 3):
        stub.run(THIRD).answer(step)
    stub.run(THIRD).answer(2, branch=1, error="The engine ended.")
    table: Any = run.previews()
    assert [row["step"] for row in table] == [1, 1, 2, 2, 3, 3, 2, 2]
    assert [row["error"] for row in table[-3:]] == [None, *["The engine ended."] * 2]
    assert (table[5]["branch"], table[5]["prompt"]) == (0, "And you?")
    assert (table[5]["text"], table[5]["end"]) == ("And you? 3", "stop")


def test_the_command(stub: Stub, run: Run) -> None:
    perform = COMMANDS["preview"].perform

    def find(name: str) -> Run:
        assert name == "latest"
        return run

    told = perform(find, ["latest", "Hello", "And you?"], every=50).text
    assert told == f"{THIRD} answers 2 prompts, every 50 steps"
    assert stub.run(THIRD).rounds == []
    assert perform(find, ["latest"]).text == "step 2\n\n> Hello\nHello 2\n\n> And you?\nAnd you? 2"
    assert perform(find, ["latest", "Bye"]).text == "step 2\n\n> Bye\nBye 2"
    assert stub.run(THIRD).preview.every == 50
    told = perform(find, ["latest"], every=0).text
    assert told == f"{THIRD} answers 1 prompt, on request only"
    with pytest.raises(Misuse):
        perform(find, [])


def test_what_is_said_of_a_preview_that_failed() -> None:
    one = {"step": 3, "branch": 1, "error": "The engine ended.", "answers": []}
    assert previews.words(one) == "step 3 of branch 1: The engine ended."
    head = {"actor": None, "step": 3}
    event = {"kind": "preview_sampled", "data": one, **head}
    assert words(event) == "preview: The engine ended."
    fine = {"error": None, "answers": [{"error": None}, {"error": "too long"}]}
    assert words({"kind": "preview_sampled", "data": fine, **head}) == "preview: 1 prompt answered"
    changed = {"kind": "preview_changed", "actor": "ada", "data": {"prompts": ["a"], "every": 9}}
    assert words(changed) == "previews by ada: 1 prompt, every 9 steps"
