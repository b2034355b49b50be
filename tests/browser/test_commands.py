"""The palette, shortcuts, JupyterLab's launcher and its status bar."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.desk import (
    COMMANDS,
    EVERYWHERE,
    dashboard_in_view,
    open_dashboard,
    palette,
    row,
    show_sidebar,
    toast,
)
from tests.browser.driven import Driven
from tests.browser.lab import Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_the_launcher_and_the_status_bar_open_a_dashboard(lab: Lab, external: Driven) -> None:
    lab.open_desk()
    status = lab.page.locator(".jp-Tinker-status")
    expect(status).to_have_text(
        re.compile(rf"^Tinker engine running · step {external.steps} · loss \d")
    )
    cards = lab.page.locator(".jp-LauncherCard")
    expect(cards.filter(has_text="Open Notebook on the Engine")).to_be_visible()
    lab.page_screenshot("launcher")
    cards.filter(has_text="Runs").click()
    dashboard = dashboard_in_view(lab)
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, 5)))
    external.train(3)
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, 8)))
    expect(status).to_contain_text("step 7")
    dashboard.evaluate("node => { node.first = true; }")
    lab.command("launcher:create")
    expect(dashboard).to_have_count(0)
    status.click()
    assert dashboard.evaluate("node => node.first"), "the one that is open comes to the front"


@EVERYWHERE
def test_commands_are_in_the_palette_and_their_shortcuts_steer_the_run_in_view(
    lab: Lab, external: Driven, place: str
) -> None:
    newer = Driven(external.server)
    newer.train(2)
    lab.open_desk()
    offered = palette(lab)
    for label in COMMANDS:
        assert any(label in item and "Alt+T" in item for item in offered), offered
    lab.page_screenshot(f"palette-{place}")
    lab.page.keyboard.press("Escape")
    open_dashboard(lab, newer)
    dashboard = open_dashboard(lab, external)
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, external.steps + 1)))

    def press(key: str) -> None:
        lab.page.keyboard.press("Alt+t")
        lab.page.keyboard.press(key)

    press("h")
    until(lambda: external.controls["learning_rate_scale"] == 0.5)
    press("h")
    until(lambda: external.controls["learning_rate_scale"] == 0.25)
    dashboard.get_by_label("Learning rate scale, exactly").focus()
    press("2")
    until(lambda: external.controls["learning_rate_scale"] == 0.5)
    press("r")
    until(lambda: external.controls["learning_rate_scale"] == 1)
    press("p")
    told = toast(lab, f"Run {external.short} is paused at step 4")
    expect(told).to_be_visible()
    expect(row(show_sidebar(lab), external).locator(".jp-Tinker-state")).to_have_text("paused")
    lab.page_screenshot(f"paused-{place}")
    told.get_by_role("button", name="Resume").click()
    until(lambda: not external.controls["paused"])
    assert newer.controls["learning_rate_scale"] == 1
    assert not newer.controls["paused"]
    lab.page.get_by_role("tab", name=f"Run {newer.short}").click()
    until(lambda: lab.drawn_steps(dashboard) == [1, 2])
    external_before = external.controls
    press("h")
    until(lambda: newer.controls["learning_rate_scale"] == 0.5)
    assert external.controls == external_before
