"""What takes long, in the panel and in the cell that waits for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.lab import PANEL, Lab, until
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_load_is_shown_while_it_lasts(page: Page, start_lab: Callable[..., Server]) -> None:
    slowly = {"PYTHONPATH": str(Path(__file__).parent.parent / "slowly")}
    lab = Lab(page, start_lab(env=slowly))
    lab.open(PANEL, lab.loop())
    lab.run_all()
    bar = lab.panel.get_by_role("progressbar")
    bar.wait_for()
    loading = re.compile(r"Loading tiny: \d+ of \d+ tensors")
    expect(lab.panel.locator(".jt-progress")).to_have_text(loading, timeout=60_000)
    expect(bar).to_have_attribute("aria-valuetext", loading)
    expect(bar).to_have_attribute("aria-label", "Loading tiny")
    lab.screenshot("progress")
    # The loop's cell is busy, and says what it waits for.
    cell = page.locator(".jp-OutputArea-output", has=page.locator("progress"))
    expect(cell).to_contain_text(re.compile(r"loading tiny: \d+ of \d+ tensors"))
    cell.scroll_into_view_if_needed()
    lab.page_screenshot("progress-in-a-cell")
    expect(bar).to_be_hidden(timeout=60_000)
    expect(page.locator(".jp-OutputArea-output progress")).to_have_count(0)
    until(lambda: lab.step >= 3)
    expect(page.locator(".jp-InputPrompt", has_text="[*]")).to_have_count(1)  # all in one cell
    lab.close()
