"""The kernel's part of the panel: its traits."""

from __future__ import annotations

import threading
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


def test_an_observer_of_what_the_browser_says_can_steer(named: Stub) -> None:
    panel = jupyter_tinker.Panel(SECOND)
    panel.observe(lambda _: setattr(panel, "paused", True), "loss")
    # In one message, as the browser sends it: here `paused` is what was before.
    panel.set_state({"current_run": SECOND, "loss": 9.0, "step": 3, "paused": False})
    assert panel.paused is True
    assert named.runs[1].controls.paused is True
    assert [body for _, body in _posts(named)] == [{"paused": True}]


def test_an_observer_chooses_a_run_by_its_short_name(named: Stub) -> None:
    panel = jupyter_tinker.Panel(SECOND)
    panel.observe(lambda _: setattr(panel, "run", "latest"), "state")
    panel.set_state({"state": "ended"})
    assert panel.run == THIRD


def test_a_thread_steers_while_another_is_told(named: Stub) -> None:
    panel = jupyter_tinker.Panel(SECOND)

    def steer(_: object) -> None:
        with panel._told(True):  # as amid a message of the browser
            other = threading.Thread(target=setattr, args=(panel, "grad_clip_norm", 0.5))
            other.start()
            other.join()

    panel.observe(steer, "step")
    panel.set_state({"step": 1})
    assert named.runs[1].controls.grad_clip_norm == 0.5


def test_controls_that_it_is_made_with_are_asked_for(named: Stub) -> None:
    panel = jupyter_tinker.Panel(SECOND, paused=True, learning_rate_scale=0.5)
    assert (panel.paused, panel.learning_rate_scale) == (True, 0.5)
    controls = named.runs[1].controls
    assert (controls.paused, controls.learning_rate_scale) == (True, 0.5)
    jupyter_tinker.Panel(SECOND, paused=False)  # as is its default, and said all the same
    assert named.runs[1].controls.paused is False


def test_one_that_is_made_with_what_cannot_be_is_refused(named: Stub) -> None:
    with pytest.raises(TraitError, match="learning_rate_scale must be a finite number above 0"):
        jupyter_tinker.Panel(SECOND, paused=True, learning_rate_scale=-1.0)
    assert named.runs[1].controls.paused is False
    with pytest.raises(TraitError):
        jupyter_tinker.Panel(SECOND, paused="yes")
    named.runs = []
    with pytest.raises(TraitError, match="no run"):
        jupyter_tinker.Panel(paused=True)


def test_without_a_server_controls_are_refused(nowhere: None) -> None:
    with pytest.raises(TraitError, match="server"):
        jupyter_tinker.Panel(paused=True)
