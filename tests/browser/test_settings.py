"""The Settings Editor's form, filled in by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.desk import IN_LAB_AND_TREE, menu, row, show_sidebar, toast
from tests.browser.driven import Driven
from tests.browser.lab import Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_KEPT = "lab/api/settings/jupyter-tinker:plugin"


def _kept(lab: Lab) -> str:
    """What the server has kept of them, as it was written."""
    jupyters = {"Authorization": f"token {lab.server.token}"}
    raw: str = lab.server.fetch(_KEPT, headers=jupyters)[1]["raw"]
    return raw


@pytest.fixture
def form(lab: Lab) -> Iterator[Locator]:
    lab.open_desk()
    menu(lab, "Settings", "Settings Editor")
    lab.page.get_by_role("tab", name="Tinker", exact=True).click()
    form = lab.page.locator(".jp-SettingsForm").filter(has_text="Steps in a sparkline")
    expect(form).to_be_visible()
    yield form
    lab.page.evaluate(
        """() => window.jupyterapp.serviceManager.settings.save("jupyter-tinker:plugin", '{}')"""
    )


@IN_LAB_AND_TREE
def test_what_is_ticked_is_told_and_what_makes_no_sense_is_refused(
    lab: Lab, external: Driven, form: Locator, place: str
) -> None:
    state = row(show_sidebar(lab), external).locator(".jp-Tinker-state")
    curve = row(show_sidebar(lab), external).get_by_role("img")
    expect(curve).to_have_attribute("aria-label", re.compile("over the last 4 steps$"))
    form.get_by_label("A run pauses").uncheck()
    until(lambda: '"paused": false' in _kept(lab))
    # There as soon as the page itself goes by what was kept.
    expect(form.get_by_role("button", name="Restore to Defaults")).to_be_visible()
    external.steer(paused=True)
    expect(state).to_have_text("paused")
    external.steer(paused=False, guards={"plateau": {"min_delta": 100.0, "patience": 1}})
    external.train(2)
    expect(toast(lab, f"Run {external.short} is paused by a guard at step")).to_have_count(1)
    expect(toast(lab, external.short)).to_have_count(1)
    external.steer(guards={"plateau": None}, paused=False)

    sparkline = form.locator("[id$=_sparkline]")
    sparkline.fill("601")
    expect(form.get_by_text("must be <= 600", exact=True)).to_be_visible()
    lab.page_screenshot(f"settings-{place}")
    sparkline.fill("3")
    until(lambda: '"sparkline": 3' in _kept(lab))
    assert "601" not in _kept(lab)
    expect(curve).to_have_attribute("aria-label", re.compile("over the last 3 steps$"))
