"""The kernel's part of the panel: its traits."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from traitlets import TraitError

import jupyter_tinker
from jupyter_tinker.notebook.client import RequestFailed
from tests.notebook.conftest import SECOND, THIRD
from tests.notebook.stub import Stub


def _posts(stub: Stub) -> list[tuple[str, object]]:
    return [(path, body) for verb, path, body in stub.asked if verb == "POST"]


def test_it_needs_no_server_to_be_made(nowhere: None) -> None:
    panel = jupyter_tinker.Panel()
    assert (panel.run, panel.server_url) == (None, "")


def test_a_run_is_named_as_everywhere(named: Stub) -> None:
    assert jupyter_tinker.Panel("latest").run == THIRD
    assert jupyter_tinker.Panel("latest~1").run == SECOND
    with pytest.raises(RequestFailed, match="no run"):
        jupyter_tinker.Panel("nothing")
    panel = jupyter_tinker.Panel()
    panel.run = "latest~1"
    assert panel.run == SECOND


def test_what_is_set_in_python_goes_to_the_server(named: Stub) -> None:
    panel = jupyter_tinker.Panel(SECOND)
    panel.learning_rate_scale = 0.5
    panel.paused = True
    panel.grad_clip_norm = 0.25
    controls = named.runs[1].controls
    assert (controls.learning_rate_scale, controls.paused) == (0.5, True)
    assert controls.grad_clip_norm == 0.25
    assert named.runs[0].controls.paused is False


def test_what_the_server_refuses_stays_as_it_was(named: Stub) -> None:
    panel = jupyter_tinker.Panel(SECOND)
    with pytest.raises(TraitError, match="learning_rate_scale must be a finite number above 0"):
        panel.learning_rate_scale = -1.0
    assert panel.learning_rate_scale == 1.0


def test_what_the_browser_says_is_observed_and_not_sent_back(named: Stub) -> None:
    panel = jupyter_tinker.Panel()
    seen: list[tuple[str, object]] = []
    panel.observe(lambda change: seen.append((change["name"], change["new"])), ["step", "paused"])
    panel.set_state({"current_run": SECOND, "step": 7, "paused": True, "learning_rate_scale": 2.0})
    assert sorted(seen) == [("paused", True), ("step", 7)]
    assert panel.learning_rate_scale == 2.0
    assert _posts(named) == []
    panel.paused = False
    (posted,) = _posts(named)
    assert SECOND in unquote(posted[0])
    assert posted[1] == {"paused": False}
