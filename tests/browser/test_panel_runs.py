"""Which runs the panel shows: what it follows by itself, and several over one another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.driven import Driven
from tests.browser.lab import PANEL, Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

COLOURS = """chart => Object.fromEntries(chart.data
    .filter(trace => trace.name && !trace.yaxis && trace.line.width > 1.5)
    .map(trace => [trace.name, [trace.line.color, trace.x.length]]))"""


def test_it_follows_this_notebooks_runs_first(lab: Lab) -> None:
    lab.open(PANEL, lab.loop())
    Driven(lab.server).train()
    lab.run_all()
    picker = lab.panel.get_by_label("Run", exact=True)
    following = picker.locator("option:checked")
    until(lambda: following.text_content() == "Newest of this notebook")
    until(lambda: lab.step >= 2)
    own = lab.runs()[0]
    other = Driven(lab.server)
    other.train()
    assert lab.runs() == [other.id, own, *lab.runs()[2:]]
    expect(picker.locator(f"option[value='{other.id}']")).to_have_count(1)  # it is known
    before = lab.step
    until(lambda: lab.step > before + 2)
    expect(lab.panel.locator(".jt-legend li").first).to_have_attribute("title", own)
    groups = "picker => [...picker.children].map(group => group.label)"
    assert picker.evaluate(groups) == ["Newest of this notebook", "This notebook", "Others"]
    session = own.partition(":")[0]
    body = {"reason": {"type": "success"}, "detail": None}
    lab.server.fetch(f"tinker/api/v1/sessions/{session}/finish", body)
    expect(following).to_have_text("Newest of all")
    expect(lab.panel.locator(".jt-legend li").first).to_have_attribute("title", other.id)
    until(lambda: lab.step == 1)


def test_several_runs_are_compared(lab: Lab, change_theme: Callable[[str], None]) -> None:
    runs = [Driven(lab.server, rate) for rate in (1e-3, 3e-3, 1e-2)]
    for count, run in enumerate(runs, 12):
        run.train(count)
    lab.server.fetch(f"tinker/runs/{runs[1].id}/rewind", {"step": 6})
    main = runs[2]
    lab.open(PANEL)
    lab.run_all()
    lab.panel.get_by_label("Run", exact=True).select_option(main.id)
    lab.panel.get_by_text("Compare", exact=True).click()
    lab.panel.locator(f"input[value='{runs[1].id}']").check()
    lab.page.keyboard.press("Tab")  # from the one that was clicked to the next
    lab.page.keyboard.press("Space")
    expect(lab.panel.get_by_text("Compare (2)")).to_be_visible()
    chosen = lab.panel.locator(".jt-compare input:checked")
    expect(chosen).to_have_count(2)
    lab.screenshot("choosing-runs")
    lab.page.keyboard.press("Escape")
    expect(lab.panel.locator(".jt-compare")).to_be_hidden()

    chart = lab.panel.locator(".jt-chart")
    until(lambda: sorted(points for _, points in chart.evaluate(COLOURS).values()) == [6, 12, 14])
    drawn = chart.evaluate(COLOURS)
    assert len({colour for colour, _ in drawn.values()}) == 3
    legend = lab.panel.locator(".jt-legend li")
    expect(legend).to_have_count(3)
    expect(legend.nth(1)).to_contain_text("step 6")
    expect(legend.nth(1)).to_contain_text("branch 0 left at step 6")
    runs[0].train()
    until(lambda: 13 in [points for _, points in chart.evaluate(COLOURS).values()])
    expect(legend.nth(2)).to_contain_text("step 13")
    lab.screenshot("compared")
    change_theme("JupyterLab Dark")
    light = set(map(str, drawn.values()))
    until(lambda: not light & set(map(str, chart.evaluate(COLOURS).values())))
    lab.screenshot("compared-dark")

    legend.nth(1).get_by_role("button", name="Compare no more").click()
    expect(legend).to_have_count(2)
    until(lambda: len(chart.evaluate(COLOURS)) == 2)
    lab.panel.get_by_label("Learning rate scale, exactly").fill("0.5")
    lab.panel.get_by_label("Learning rate scale, exactly").press("Enter")
    until(lambda: main.controls["learning_rate_scale"] == 0.5)  # the main one only
    assert runs[0].controls["learning_rate_scale"] == 1.0
