"""The panel's learning rate finder, in JupyterLab, while a cell trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.lab import PANEL, Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_learning_rate_is_found_and_used_while_a_cell_trains(
    lab: Lab, change_theme: Callable[[str], None]
) -> None:
    lab.page.set_viewport_size({"width": 1300, "height": 1500})
    # So slow that there is much left to learn.
    lab.open(PANEL, lab.loop().replace("1e-3", "1e-6"))
    before = len(lab.runs())
    lab.run_all()
    until(lambda: len(lab.runs()) > before and lab.panel.count() and lab.step >= 5)
    run = lab.runs()[0]
    panel = lab.panel
    panel.get_by_role("tab", name="What happened").focus()
    lab.page.keyboard.press("ArrowLeft")  # from the first to the last
    tab = panel.get_by_role("tabpanel", name="LR finder")
    expect(tab).to_be_visible()
    expect(tab).to_contain_text("the run itself is untouched")
    lab.screenshot("finder-before")

    # One that cannot be: the server's sentence.
    sweep = tab.get_by_role("button", name="Sweep")
    tab.get_by_label("Highest learning rate").fill("1e-7")
    sweep.click()
    expect(tab.get_by_role("alert")).to_contain_text("min must be below max")

    # One that would take long is cancelled.
    tab.get_by_label("Lowest learning rate").fill("1e-12")
    tab.get_by_label("Highest learning rate").fill("1e-11")
    tab.get_by_label("Steps of the sweep, 10 to 200").fill("200")
    sweep.click()
    expect(tab.get_by_role("progressbar")).to_be_visible()
    expect(sweep).to_be_disabled()
    expect(tab.get_by_text("at LR")).to_be_visible()
    lab.screenshot("finder-running")
    tab.get_by_role("button", name="Cancel").click()
    expect(tab).to_contain_text("The sweep was cancelled.")
    expect(sweep).to_be_enabled()

    tab.get_by_label("Lowest learning rate").fill("1e-6")
    tab.get_by_label("Highest learning rate").fill("10")
    tab.get_by_label("Steps of the sweep, 10 to 200").fill("60")
    sweep.click()
    use = tab.get_by_role("button", name="Use this LR")
    expect(use).to_be_enabled()
    state = lab.server.fetch(f"tinker/runs/{run}/lr_find")[1]
    suggestion = float(f"{state['suggestion']['learning_rate']:.1e}")
    drawn = "plot => plot.data[1].x"
    rates = [point["learning_rate"] for point in state["points"]]
    assert tab.locator(".jt-sweep").evaluate(drawn) == rates
    marks = "plot => plot.layout.shapes.map(s => s.x0)"
    assert suggestion in tab.locator(".jt-sweep").evaluate(marks)
    lab.screenshot("finder-done")
    # The loop has gone on as it was until now.
    assert {step["learning_rate"] for step in lab.steps(run)} == {1e-6}
    use.click()
    until(lambda: lab.steps(run)[-1]["learning_rate"] == suggestion)
    expect(use).to_be_disabled()
    expect(tab).to_contain_text("The run uses it")
    panel.get_by_role("tab", name="What happened").click()
    expect(panel.locator(".jt-list")).to_contain_text("the sweep suggests LR")
    panel.get_by_role("tab", name="LR finder").click()
    change_theme("JupyterLab Dark")
    lab.command("application:toggle-left-area")
    lab.page.set_viewport_size({"width": 760, "height": 1500})
    lab.screenshot("finder-dark-narrow")
