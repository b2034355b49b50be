"""Which runs are this kernel's: the tag that the SDK gives its sessions."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from ipykernel.kernelapp import IPKernelApp

import jupyter_tinker
from jupyter_tinker.notebook.kernel import TAGS, kernel_id, tag_sessions, untag_sessions
from tests.notebook.conftest import FIRST, SECOND, THIRD
from tests.notebook.stub import Stub


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the kernel `b7`."""
    monkeypatch.setenv(TAGS, "")
    monkeypatch.delenv(TAGS)
    IPKernelApp.instance(connection_file="/run/jupyter/kernel-b7.json")
    yield
    IPKernelApp.clear_instance()


def test_a_process_that_is_no_kernel_has_no_id_and_sets_no_tag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TAGS, "jupyter-kernel=its-parent")
    assert kernel_id() == ""
    tag_sessions()
    untag_sessions()
    assert os.environ[TAGS] == "jupyter-kernel=its-parent", "a script that a notebook starts"


@pytest.mark.usefixtures("kernel")
def test_tags_that_somebody_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    tag_sessions()
    assert os.environ[TAGS] == "jupyter-kernel=b7"
    untag_sessions()
    assert TAGS not in os.environ
    monkeypatch.setenv(TAGS, "mine,jupyter-kernel=another,yours")
    for _ in range(2):
        tag_sessions()
        assert os.environ[TAGS] == "mine,yours,jupyter-kernel=b7"
    untag_sessions()
    assert os.environ[TAGS] == "mine,yours"


@pytest.mark.usefixtures("kernel")
def test_a_panel_goes_for_the_newest_run_of_its_own_kernel(named: Stub) -> None:
    panel = jupyter_tinker.Panel()
    assert panel.kernel_id == "b7"
    assert os.environ[TAGS] == "jupyter-kernel=b7", "also without %load_ext"

    def steered(value: float) -> str:
        panel.weight_decay = value
        (run,) = [run.id for run in named.runs if run.controls.weight_decay == value]
        return run

    for run in named.runs:
        run.session_tags = ["jupyter-kernel=c8" if run.id == THIRD else "jupyter-kernel=b7"]
    assert steered(0.1) == SECOND
    named.run(SECOND).ended = "its session has ended"
    assert steered(0.2) == FIRST
    named.run(FIRST).ended = "its session has ended"
    assert steered(0.3) == THIRD
    panel.set_state({"current_run": SECOND})
    assert steered(0.4) == SECOND, "what the browser shows"
