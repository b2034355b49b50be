"""The quickstart as its reader sees it: in JupyterLab, with a real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Page, expect

from tests.browser.lab import Lab, until
from tests.environments import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRAINING = 600.0  # seconds, of a model of 135 million parameters beside other tests


@pytest.mark.timeout(1800)
def test_the_quickstart_is_watched_and_steered(
    page: Page, start_lab: Callable[..., object], smollm2: Path
) -> None:
    server = start_lab(models={"smollm2-135m": smollm2})
    lab = Lab(page, server)
    quickstart = nbformat.read(REPOSITORY / "notebooks" / "quickstart.ipynb", as_version=4)
    lab.open_notebook(quickstart, "quickstart.ipynb")
    lab.run_all()
    until(lambda: lab.panel.count() and lab.step >= 8, TRAINING)
    lab.panel.scroll_into_view_if_needed()
    scale = lab.panel.get_by_label("Learning rate scale, exactly")
    scale.fill("0.5")
    scale.press("Enter")
    until(lambda: lab.step >= 20, TRAINING)
    lab.page_screenshot("quickstart-notebook")
    # All cells, to the last.
    last = page.locator(".jp-Notebook .jp-Cell").last.locator(".jp-OutputArea-output")
    expect(last).to_contain_text("held-out loss of the loaded run", timeout=1e3 * TRAINING)
    (run,) = lab.runs()[-1:]
    used = [step["learning_rate"] for step in lab.steps(run)]
    assert used[0] == 1e-3
    assert used[23] == 5e-4, "turned in the panel, while the loop ran"
    lab.screenshot("quickstart-panel")
    lab.command("tinker:show-sidebar")
    lab.command("tinker:open-dashboard", run=run)
    dashboard = page.locator(".jp-Tinker-dashboard:visible")
    until(lambda: lab.drawn_steps(dashboard)[-1:] == [25])
    lab.page_screenshot("quickstart-dashboard")
    server.stop()
