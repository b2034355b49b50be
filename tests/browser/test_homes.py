"""The panel where it is not at home: in Notebook 7, and in a page of another server than the one
that has the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.lab import BUSY, NOTEBOOK, Lab, until
from tests.raw import RawRun
from tests.servers import Server, start_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONNECTED = """\
%load_ext jupyter_tinker
%tinker connect {url} {key}
import jupyter_tinker
panel = jupyter_tinker.Panel()
panel
"""
THREADS = """\
import threading, time
named = lambda: [thread for thread in threading.enumerate() if thread.name == "tinker-panel"]
deadline = time.monotonic() + 30
while named() and time.monotonic() < deadline:
    time.sleep(0.05)
print("threads of the panel:", len(named()))
"""


@pytest.fixture
def elsewhere(tmp_path: Path, tiny_model_dir: Path) -> Iterator[Server]:
    """Another server than that of the page."""
    server = start_server(tmp_path, models={"tiny": tiny_model_dir})
    yield server
    server.stop()


def test_notebook_7(page: Page, start_lab: Callable[..., Server]) -> None:
    server = start_lab(app=NOTEBOOK)
    lab = Lab(page, server, place="notebook")
    run = lab.train()
    assert lab.is_busy()
    lab.slide("ArrowRight", 30)
    until(lambda: [s for s in lab.steps(run) if s["learning_rate"] > 1.99e-3])
    before = lab.drawn_steps()[-1]
    until(lambda: lab.drawn_steps()[-1] > before + 5)
    assert lab.is_busy()
    lab.screenshot("notebook-7")
    lab.close()


def test_runs_of_another_server_come_through_the_kernel(lab: Lab, elsewhere: Server) -> None:
    own = RawRun(lab.server)  # of the page's server, and never to be seen
    connected = CONNECTED.format(url=elsewhere.url, key=elsewhere.key)
    lab.open(connected, lab.loop(BUSY), THREADS)
    lab.run_cell(0)
    lab.panel.wait_for()
    expect(lab.output(0)).to_contain_text(f"does not come from {elsewhere.url}")
    badge = lab.panel.locator(".jt-badge").nth(1)
    expect(badge).to_have_text("live")
    run = RawRun(elsewhere)
    run.train(range(1, 5))
    until(lambda: lab.drawn_steps() == list(range(1, 5)))
    assert own.id not in lab.panel.inner_html()

    lab.run_cell(1)
    until(lab.is_busy)
    run.train(range(5, 9))
    until(lambda: lab.drawn_steps() == list(range(1, 9)))
    second = RawRun(elsewhere)  # begins while nothing can be asked of the kernel
    second.train(range(1, 4))
    until(lambda: lab.drawn_steps() == [1, 2, 3])
    lab.screenshot("by-kernel")
    assert lab.is_busy()
    lab.panel.get_by_role("button", name="Pause").click()
    lab.end_loops()
    expect(lab.panel.get_by_role("button", name="Resume")).to_be_visible()
    state = elsewhere.fetch(f"tinker/runs/{second.id}/controls")[1]
    assert state["paused"] is True
    assert lab.server.fetch(f"tinker/runs/{own.id}/controls")[1]["paused"] is False

    lab.command("notebook:clear-all-cell-outputs")
    expect(lab.page.locator(".jt-panel")).to_have_count(0)
    lab.run_cell(2)
    expect(lab.output(2)).to_contain_text("threads of the panel: 0")
