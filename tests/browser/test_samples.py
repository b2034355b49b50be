"""The tab of samples, while a cell trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.lab import PANEL, Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROMPTS = ["What is a licence?", "Tell me of the copyright holders, and of their names."]


@pytest.fixture
def training(lab: Lab) -> Lab:
    """Two panels, both open at the samples, and a loop that goes on below."""
    before = len(lab.runs())
    lab.open(PANEL, PANEL, lab.loop())
    lab.run_all()
    until(lambda: len(lab.runs()) > before)
    until(lambda: len(lab.steps(lab.runs()[0])) >= 3 and lab.page.locator(".jt-panel").count() == 2)
    return lab


def _open(panel: Locator) -> Locator:
    panel.get_by_role("tab", name="Samples").click()
    page = panel.get_by_role("tabpanel", name="Samples")
    expect(page).to_be_visible()
    return page


def _rounds(lab: Lab) -> list[dict[str, Any]]:
    run = lab.runs()[0]
    rounds: list[dict[str, Any]] = lab.server.fetch(f"tinker/runs/{run}/previews")[1]["previews"]
    return rounds


def test_prompts_are_answered_as_the_run_trains(training: Lab) -> None:
    lab = training
    panels = lab.page.locator(".jt-panel")
    samples = _open(panels.nth(0))
    expect(samples).to_contain_text("Nothing has been sampled yet.")
    save = samples.get_by_role("button", name="Save")
    expect(save).to_be_disabled()
    expect(save).to_have_attribute("title", "Nothing is changed.")
    # By the keyboard alone.
    samples.get_by_label("Prompt 1", exact=True).fill(PROMPTS[0])
    samples.get_by_role("button", name="Add a prompt").press("Enter")
    expect(samples.get_by_label("Prompt 2", exact=True)).to_be_focused()
    lab.page.keyboard.type(PROMPTS[1])
    samples.get_by_label("Most tokens of an answer").fill("40")
    every = samples.get_by_label("Every how many steps; empty: on request only")
    every.fill("often")
    every.press("Enter")
    expect(samples.get_by_role("alert")).to_contain_text("“often”")
    every.fill("20")
    every.press("Enter")
    expect(samples.get_by_role("status")).to_have_text("Saved.")
    table = samples.get_by_role("table")
    rows = table.get_by_role("rowheader")
    until(lambda: rows.count() >= 3)
    steps = [int(text.split()[0]) for text in rows.all_inner_texts()]
    assert steps == sorted(steps, reverse=True)
    assert all(step % 20 == 0 for step in steps)
    assert table.get_by_role("columnheader").all_inner_texts() == ["Step", *PROMPTS]
    assert lab.is_busy()
    # What is shown is what was said, and the other panel agrees.
    other = _open(panels.nth(1))
    expect(other.get_by_label("Prompt 2", exact=True)).to_have_value(PROMPTS[1])
    expect(other.get_by_label("Every how many steps; empty: on request only")).to_have_value("20")
    known = {one["step"]: one["answers"] for one in _rounds(lab)}
    last = other.get_by_role("row").last.get_by_role("cell").all()
    for cell, answer in zip(last, known[steps[-1]], strict=True):
        text = cell.locator(".jt-answer").evaluate("cell => cell.textContent")
        assert text.removesuffix(" ⋯") == (answer["text"] if answer["text"].strip() else "(blank)")
    samples.scroll_into_view_if_needed()
    lab.screenshot("samples-light")


def test_a_paused_run_answers_on_a_click_and_text_is_only_text(training: Lab) -> None:
    lab = training
    panel = lab.panel
    samples = _open(panel)
    panel.get_by_role("button", name="Pause").click()
    expect(panel.get_by_role("button", name="Resume")).to_be_visible()
    now = samples.get_by_role("button", name="Sample now")
    now.click()
    expect(samples.get_by_role("alert")).to_contain_text("no prompts")
    wicked = "<img src=x onerror='window.wicked = true'><b>bold</b>"
    samples.get_by_label("Prompt 1", exact=True).fill(wicked)
    samples.get_by_label("Prompt 1", exact=True).press("Control+Enter")  # saves, and asks
    expect(samples.get_by_role("status")).to_contain_text("has answered")
    expect(samples.get_by_role("columnheader").nth(1)).to_have_text(wicked)
    assert samples.locator("b, img").count() == 0
    assert lab.page.evaluate("window.wicked") is None
    (one,) = _rounds(lab)
    assert one["actor"] is not None
    assert one["step"] == lab.steps(lab.runs()[0])[-1]["step"]
    for _ in range(4):
        samples.get_by_role("button", name="Add a prompt").click()
    expect(samples.get_by_role("button", name="Add a prompt")).to_be_disabled()
    samples.get_by_role("button", name="Remove prompt 5").click()
    expect(samples.get_by_label("Prompt 4", exact=True)).to_be_focused()


def test_samples_of_a_branch_that_was_left_and_narrow_and_dark(
    training: Lab, change_theme: Callable[[str], None]
) -> None:
    lab = training
    samples = _open(lab.panel)
    samples.get_by_label("Prompt 1", exact=True).fill(PROMPTS[0])
    samples.get_by_role("button", name="Add a prompt").click()
    samples.get_by_label("Prompt 2", exact=True).fill(PROMPTS[1])
    samples.get_by_label("Most tokens of an answer").fill("120")
    samples.get_by_label("Every how many steps; empty: on request only").fill("10")
    samples.get_by_role("button", name="Save").click()
    until(lambda: len(_rounds(lab)) >= 3)
    run = lab.runs()[0]
    first = _rounds(lab)[0]["step"]
    lab.server.fetch(f"tinker/runs/{run}/rewind", {"step": first + 1})
    until(lambda: len([one for one in _rounds(lab) if one["branch"] == 1]) >= 2)
    expect(samples.locator(".jt-left").first).to_contain_text("branch 0, left")
    expect(samples.get_by_role("rowheader").first).to_contain_text("branch 1")
    fold = samples.get_by_role("button", name="All of it").first
    if fold.count():
        fold.click()
        expect(samples.get_by_role("button", name="Less").first).to_have_attribute(
            "aria-expanded", "true"
        )
    change_theme("JupyterLab Dark")
    lab.screenshot("samples-dark")
    lab.command("application:toggle-left-area")
    lab.page.set_viewport_size({"width": 690, "height": 1300})
    box = samples.bounding_box()
    assert box is not None
    width = samples.locator(".jt-answers-box").evaluate("box => box.scrollWidth - box.clientWidth")
    assert width <= 0  # cards, and nothing to scroll to at the side
    lab.screenshot("samples-narrow")
