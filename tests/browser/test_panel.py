"""The panel in JupyterLab, while a cell trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.lab import PANEL, Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_train = Lab.train


def test_the_slider_steers_a_busy_cell_and_the_curves_follow(lab: Lab) -> None:
    run = _train(lab)
    assert lab.is_busy()
    lab.slider.focus()
    for _ in range(30):
        lab.page.keyboard.press("ArrowRight")
    changed = until(lambda: [s for s in lab.steps(run) if s["learning_rate"] > 1.99e-3])
    assert changed[0]["learning_rate"] == pytest.approx(1e-3 * 10**0.3, rel=1e-3)
    assert changed[0]["learning_rate_requested"] == 1e-3
    assert lab.is_busy()
    before = lab.drawn_steps()[-1]
    until(lambda: lab.drawn_steps()[-1] > before + 10)
    expect(lab.panel.locator(".jt-list")).to_contain_text("LR")
    exact = lab.panel.get_by_label("Learning rate scale, exactly")
    exact.fill("0.25")
    exact.press("Enter")
    until(lambda: lab.steps(run)[-1]["learning_rate"] == 2.5e-4)
    lab.screenshot("light")
    lab.command("application:toggle-left-area")
    lab.page.set_viewport_size({"width": 760, "height": 1300})
    lab.screenshot("narrow")
    assert lab.is_busy()


def test_pause_step_and_resume(lab: Lab) -> None:
    run = _train(lab)
    lab.panel.get_by_role("button", name="Pause").click()
    expect(lab.panel.get_by_role("button", name="Resume")).to_be_visible()
    expect(lab.panel.locator(".jt-badge").first).to_have_text("paused")
    lab.panel.get_by_label("How many steps to make").fill("3")
    lab.panel.get_by_role("button", name="Step", exact=True).click()
    expect(lab.panel.locator(".jt-list")).to_contain_text("3 steps asked for are done")
    events = lab.server.fetch(f"tinker/runs/{run}/events")[1]["events"]
    (resumed,) = [event["step"] for event in events if event["kind"] == "resumed"]
    assert lab.steps(run)[-1]["step"] == resumed + 3
    lab.panel.get_by_role("button", name="Resume").click()
    until(lambda: lab.steps(run)[-1]["step"] > resumed + 5)


def test_a_click_on_the_curve_rewinds_and_forks(lab: Lab) -> None:
    run = _train(lab)
    until(lambda: lab.step >= 40)
    plot = lab.panel.locator(".jt-chart .nsewdrag").first.bounding_box()
    assert plot is not None
    lab.page.mouse.move(plot["x"] + plot["width"] / 2, plot["y"] + 60, steps=5)
    lab.page.mouse.click(plot["x"] + plot["width"] / 2, plot["y"] + 60)
    dialog = lab.panel.get_by_role("dialog")
    expect(dialog).to_contain_text("Rewind")
    lab.screenshot("dialog")
    chosen = int(dialog.locator("strong").inner_text().removeprefix("Step "))
    assert 5 < chosen < lab.steps(run)[-1]["step"]
    dialog.get_by_role("button", name="Rewind").click()
    expect(lab.panel.locator(".jt-notices .jt-note")).to_contain_text(f"at step {chosen}")
    # A step that the rewind came amid is skipped.
    made = until(lambda: [s for s in lab.steps(run) if s["branch"] == 1 and not s["skipped"]])
    assert made[0]["step"] == chosen + 1
    left = "chart => chart.data.filter(t => t.name === 'left branch').length"
    until(lambda: lab.panel.locator(".jt-chart").evaluate(left) == 1)
    lab.panel.get_by_label("Step to go back to").fill(str(chosen))
    lab.panel.get_by_role("button", name="Fork…").click()
    lab.panel.get_by_role("dialog").get_by_role("button", name="Fork").click()
    expect(lab.panel.locator(".jt-notices .jt-note")).to_contain_text(
        f"tinker://{run}/weights/step={chosen}"
    )
    lab.screenshot("rewound")


def test_two_panels_agree_and_one_can_be_closed(lab: Lab) -> None:
    _train(lab, PANEL, PANEL)
    panels = lab.page.locator(".jt-panel")
    expect(panels).to_have_count(2)
    panels.nth(0).get_by_label("Gradient clip norm; 0 is off").fill("0.125")
    panels.nth(0).get_by_role("button", name="Set", exact=True).nth(1).click()
    expect(panels.nth(1).get_by_label("Gradient clip norm; 0 is off")).to_have_value("0.125")
    lab.panel.get_by_role("button", name="Pause").click()
    expect(panels.nth(1).get_by_role("button", name="Resume")).to_be_visible()
    panels.nth(1).locator(".jt-chart").scroll_into_view_if_needed()  # none is drawn out of sight
    until(lambda: lab.drawn_steps(panels.nth(0)) == lab.drawn_steps(panels.nth(1)))
    feeds = "[...globalThis[Symbol.for('jupyter_tinker.feeds')].values()].map(feed => feed.users)"
    assert lab.page.evaluate(feeds) == [3]  # the two, and JupyterLab's extension
    lab.command("notebook:clear-all-cell-outputs")
    until(lambda: lab.page.evaluate(feeds) == [1])


def test_the_panel_in_the_dark(lab: Lab, change_theme: Callable[[str], None]) -> None:
    _train(lab)
    change_theme("JupyterLab Light")
    light = lab.panel.evaluate("panel => getComputedStyle(panel).backgroundColor")
    change_theme("JupyterLab Dark")
    until(lambda: lab.panel.evaluate("panel => getComputedStyle(panel).backgroundColor") != light)
    text = "chart => chart.layout.font.color"
    colour = "panel => getComputedStyle(panel).getPropertyValue('--jp-ui-font-color1').trim()"
    until(lambda: lab.panel.locator(".jt-chart").evaluate(text) == lab.panel.evaluate(colour))
    until(lambda: lab.step >= 60)
    lab.screenshot("dark")
