"""What a person does with the extension: its sidebar, dashboards, commands and notifications."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, TimeoutError, expect

from tests.browser.driven import Driven
from tests.browser.lab import Lab, until

COMMANDS = (
    "Open the Dashboard of Runs",
    "Pause the Current Run",
    "Halve the Learning Rate",
    "Double the Learning Rate",
    "Reset Learning Rate, Clipping and Weight Decay",
    "Show the Tinker Sidebar",
    "Open Notebook on the Engine",
    "Open Console on the Engine",
)
# For tests with the fixture `lab`, which opens its pages there.
IN_LAB_AND_NOTEBOOK = pytest.mark.parametrize("place", ["lab", "notebook"])
IN_LAB_AND_TREE = pytest.mark.parametrize("place", ["lab", "tree"])
EVERYWHERE = pytest.mark.parametrize("place", ["lab", "notebook", "tree"])


def show_sidebar(lab: Lab) -> Locator:
    lab.command("tinker:show-sidebar")
    sidebar = lab.page.get_by_role("region", name="Tinker", exact=True)
    expect(sidebar).to_be_visible()
    return sidebar


def row(sidebar: Locator, run: Driven) -> Locator:
    return sidebar.locator(".jp-Tinker-run").filter(has_text=run.short)


def dashboard_in_view(lab: Lab) -> Locator:
    return lab.page.locator(".jp-Tinker-dashboard:visible")


def open_dashboard(lab: Lab, run: Driven) -> Locator:
    """A run's dashboard, opened from the sidebar."""
    row(show_sidebar(lab), run).get_by_role("button", name=run.short).first.click()
    dashboard = dashboard_in_view(lab)
    expect(dashboard.locator(".jt-badge").nth(1)).to_have_text("live")
    return dashboard


def drawn_ends(dashboard: Locator) -> list[int]:
    """The last steps of all curves of a dashboard, as they are drawn."""
    ends = "chart => (chart.data ?? []).map(({ x }) => x[x.length - 1]).filter(Boolean)"
    return sorted(set(dashboard.locator(".jt-chart").evaluate(ends)))


def palette(lab: Lab) -> list[str]:
    """What the palette offers of Tinker, once that is all. It closes when a page that still opens
    takes the focus."""
    field = lab.page.locator(".lm-CommandPalette-input")
    items = lab.page.locator(".lm-CommandPalette-item")

    def offered() -> list[str]:
        try:
            if not field.is_visible():
                lab.command("apputils:activate-command-palette")
            field.fill("tinker", timeout=2_000)
        except TimeoutError:
            return []
        texts = items.all_inner_texts()
        return texts if all(any(label in text for text in texts) for label in COMMANDS) else []

    found: list[str] = until(offered)
    return found


def toast(lab: Lab, text: str) -> Locator:
    return lab.page.locator(".Toastify__toast").filter(has_text=text)


def menu(lab: Lab, *labels: str) -> None:
    """Choose an entry of the menu bar."""
    lab.page.locator(".lm-MenuBar-item").filter(has_text=labels[0]).click()
    lab.page.locator(".lm-Menu-item").filter(has_text=labels[1]).click()
