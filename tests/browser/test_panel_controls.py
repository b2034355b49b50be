"""The panel's controls: what is turned in the browser is what the server's rows tell."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.driven import ASKED, Driven
from tests.browser.lab import PANEL, Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DECAY = "Weight decay in place of what the client asks"
# What assistive technology would call each control that can be reached.
NAMES = """panel => [...panel.querySelectorAll('button, input, select, summary')]
    .filter(one => one.checkVisibility())
    .map(one => one.ariaLabel || one.labels?.[0]?.textContent || one.textContent)"""
FOCUSED = """() => {
    const one = document.activeElement;
    return one.closest('.jt-panel') && (one.ariaLabel || one.labels?.[0]?.textContent ||
        one.textContent);
}"""
# Text that stands out too little from what is behind it: WCAG 2.2, success criterion 1.4.3.
FAINT = """panel => {
    const shade = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgba = (colour) => {
        shade.clearRect(0, 0, 1, 1);
        shade.fillStyle = colour;
        shade.fillRect(0, 0, 1, 1);
        return shade.getImageData(0, 0, 1, 1).data;
    };
    const luminance = (colour) => [...rgba(colour)].slice(0, 3).reduce((sum, byte, at) => {
        const value = byte / 255;
        const linear = value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        return sum + [0.2126, 0.7152, 0.0722][at] * linear;
    }, 0);
    const ground = (one) => {
        const { backgroundColor } = getComputedStyle(one);
        return rgba(backgroundColor)[3] > 250 || !one.parentElement
            ? backgroundColor : ground(one.parentElement);
    };
    const faint = [];
    for (const one of panel.querySelectorAll(':not(svg, svg *, style, option, optgroup)')) {
        const own = [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        const text = own || one.matches('input[type=text]');
        if (!text || !one.checkVisibility() || one.matches(':disabled, :disabled *')) continue;
        const levels = [luminance(getComputedStyle(one).color), luminance(ground(one))].sort();
        const ratio = (Math.max(...levels) + 0.05) / (Math.min(...levels) + 0.05);
        if (ratio < 4.5) faint.push(`${one.className} ${one.textContent}: ${ratio.toFixed(2)}`);
    }
    return faint;
}"""


@pytest.fixture
def driven(lab: Lab) -> Driven:
    """A run of two steps, chosen in a panel that is open."""
    run = Driven(lab.server)
    lab.open(PANEL)
    lab.run_all()
    lab.panel.get_by_label("Run", exact=True).select_option(run.id)
    run.train(2)
    until(lambda: lab.step == 2)
    return run


def _set(lab: Lab, label: str, value: str) -> None:
    field = lab.panel.get_by_label(label, exact=True)
    field.fill(value)
    field.press("Enter")


def _last(lab: Lab, run: Driven) -> dict[str, Any]:
    return lab.steps(run.id)[-1]


def _marks(lab: Lab) -> str:
    """What is written beside the lines through the curves."""
    texts = "chart => (chart.layout?.annotations ?? []).map(mark => mark.text).join('; ')"
    return str(lab.panel.locator(".jt-chart").evaluate(texts))


def test_weight_decay_and_clipping_and_undoing_all(lab: Lab, driven: Driven) -> None:
    undo = lab.panel.get_by_role("button", name="Undo all")
    expect(undo).to_be_disabled()
    expect(undo).to_have_attribute("title", re.compile("Nothing to undo"))
    _set(lab, DECAY, "0.125")
    until(lambda: driven.controls["weight_decay"] == 0.125)
    _set(lab, "Gradient clip norm; 0 is off", "0.5")
    until(lambda: driven.controls["grad_clip_norm"] == 0.5)
    driven.train()
    assert [_last(lab, driven)[name] for name in ("weight_decay", "grad_clip_norm")] == [0.125, 0.5]
    until(lambda: "weight decay 0.125, clip 0.5" in _marks(lab))
    _set(lab, "Learning rate in place of what the client asks", "1e-5")
    until(lambda: driven.controls["learning_rate"] == 1e-5)
    undo.click()
    until(lambda: driven.controls["learning_rate"] is None)
    expect(undo).to_be_disabled()
    expect(lab.panel.get_by_label(DECAY)).to_have_value("")
    driven.train()
    row = _last(lab, driven)
    for name in ("learning_rate", "weight_decay", "grad_clip_norm"):
        assert row[name] == row[f"{name}_requested"], name


def test_a_ramp(lab: Lab, driven: Driven) -> None:
    _set(lab, "Steps in which a learning rate that is set from now on is reached", "4")
    _set(lab, "Learning rate scale, exactly", "0.5")
    until(lambda: driven.controls["ramp"])
    driven.train(2)
    expect(lab.panel.get_by_text("2 of 4 made")).to_be_visible()
    driven.train(3)
    expect(lab.panel.get_by_text("4 of 4 made")).to_have_count(0)
    used = [row["learning_rate"] / ASKED for row in lab.steps(driven.id)]
    assert used == pytest.approx([1, 1, 0.875, 0.75, 0.625, 0.5, 0.5])
    until(lambda: "0.5 over 4 steps" in _marks(lab))


def test_guards_are_set_in_sentences_and_pause_the_run(lab: Lab, driven: Driven) -> None:
    lab.panel.get_by_text("Guards: none").click()
    lab.panel.get_by_role("checkbox", name="Not finite").check()
    lab.panel.get_by_label("Loss spike: how many losses are compared").fill("20")
    lab.panel.get_by_role("checkbox", name="Loss spike").check()
    lab.panel.get_by_label("Plateau: by how much the loss must fall").fill("1000")
    lab.panel.get_by_label("Plateau: how many steps").fill("2")
    lab.panel.get_by_role("checkbox", name="Plateau").check()
    wanted = {
        "non_finite": True,
        "loss_spike": {"factor": 6.0, "window": 20},
        "plateau": {"min_delta": 1000.0, "patience": 2},
    }
    until(lambda: driven.controls["guards"] == wanted)
    expect(lab.panel.get_by_text("Guards: not finite, loss spike, plateau")).to_be_visible()
    lab.screenshot("guards")
    lab.panel.get_by_role("checkbox", name="Loss spike").uncheck()
    until(lambda: driven.controls["guards"]["loss_spike"] is None)
    until(lambda: driven.controls["paused"] or driven.train(), 30)
    banner = lab.panel.locator(".jt-banner")
    expect(banner).to_contain_text("Paused: ")
    expect(banner).to_contain_text(driven.controls["paused_because"])
    expect(lab.panel.get_by_role("log")).to_contain_text("The run is paused.")
    until(lambda: "plateau" in _marks(lab))
    lab.screenshot("paused-by-a-guard")


def test_what_makes_no_sense_is_said_and_changes_nothing(lab: Lab, driven: Driven) -> None:
    before = driven.controls
    fault = lab.panel.locator(".jt-notices .jt-fault")
    _set(lab, "Learning rate scale, exactly", "0,5")
    expect(fault).to_have_text('Learning rate scale, exactly: "0,5" is not a number.')
    _set(lab, "Learning rate scale, exactly", "-1")
    expect(fault).to_contain_text("learning_rate_scale must be a finite number above 0")
    expect(lab.panel.get_by_label("Learning rate scale, exactly")).to_have_value("1")
    lab.screenshot("refused")
    _set(lab, "Step to go back to", "99")
    lab.panel.get_by_role("dialog").get_by_role("button", name="Rewind").click()
    expect(fault).to_contain_text("99")
    assert driven.controls == before


def test_an_ended_run_cannot_be_steered_and_says_why(lab: Lab, driven: Driven) -> None:
    session = driven.session_id
    body = {"reason": {"type": "success"}, "detail": None}
    lab.server.fetch(f"tinker/api/v1/sessions/{session}/finish", body)
    expect(lab.panel.locator(".jt-banner")).to_contain_text("Ended: ")
    for group in ("Optimizer", "Run"):
        controls = lab.panel.get_by_role("group", name=group, exact=True)
        for control in controls.get_by_role("button").all():
            expect(control).to_be_disabled()
        expect(controls).to_have_accessible_description(re.compile("The run has ended"))
    lab.screenshot("ended")


def test_the_keyboard_reaches_all_that_has_a_name(lab: Lab, driven: Driven) -> None:
    lab.panel.get_by_text("Guards: none").click()
    names = lab.panel.evaluate(NAMES)
    assert all(name.strip() for name in names)
    lab.panel.get_by_label("Run", exact=True).focus()
    reached = []
    while (name := lab.page.evaluate(FOCUSED)) and len(reached) < 100:
        reached.append(name)
        lab.page.keyboard.press("Tab")
    # Nothing to undo, and of the tabs the open one only: the arrows lead to the others.
    assert set(names) - set(reached) <= {"Undo all"} | set(_closed_tabs(lab.panel))


def _closed_tabs(panel: Locator) -> list[str]:
    return panel.locator("[role=tab][aria-selected=false]").all_inner_texts()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_all_text_stands_out_in_both_themes(
    lab: Lab, change_theme: Callable[[str], None], driven: Driven, theme: str
) -> None:
    change_theme(theme)
    lab.panel.get_by_role("button", name="Pause").click()
    expect(lab.panel.locator(".jt-banner")).to_contain_text("Paused")
    lab.panel.get_by_text("Guards: none").click()
    _set(lab, "Learning rate scale, exactly", "-1")
    lab.panel.locator(".jt-notices .jt-fault").wait_for()
    lab.page.mouse.move(0, 0)
    until(lambda: lab.panel.evaluate(FAINT) == [], 10)
    lab.screenshot(f"all-text-{theme.split()[-1].lower()}")


def test_it_is_usable_at_600_pixels(lab: Lab, page: Page, driven: Driven) -> None:
    lab.command("application:toggle-left-area")
    lab.panel.get_by_text("Guards: none").click()
    page.set_viewport_size({"width": 720, "height": 1500})
    until(lambda: 300 < lab.panel.evaluate("panel => panel.clientWidth") <= 640)
    hidden = """panel => [...panel.querySelectorAll('button, input, select, summary, .jt-card')]
        .filter(one => one.checkVisibility())
        .map(one => [one, one.getBoundingClientRect(), panel.getBoundingClientRect()])
        .filter(([_, own, all]) => own.left < all.left || own.right > all.right)
        .map(([one]) => one.ariaLabel || one.textContent)"""
    until(lambda: lab.panel.evaluate(hidden) == [], 10)
    lab.screenshot("narrow-guards")
