"""Dashboards of runs: without a kernel, and beside a busy one."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.desk import (
    IN_LAB_AND_NOTEBOOK,
    dashboard_in_view,
    drawn_ends,
    open_dashboard,
    row,
    show_sidebar,
)
from tests.browser.driven import Driven
from tests.browser.lab import PANEL, Lab, until
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_dashboard_that_cannot_be_loaded_says_so(lab: Lab, external: Driven) -> None:
    lab.open_desk()
    # What draws curves is a part of its own, which is asked for with the first dashboard.
    parts = "**/lab/extensions/jupyter-tinker/static/*.js*"
    lab.page.route(parts, lambda route: route.abort())
    row(show_sidebar(lab), external).get_by_role("button", name=external.short).first.click()
    dashboard = dashboard_in_view(lab)
    expect(dashboard.get_by_role("alert")).to_contain_text("could not be loaded")
    lab.page_screenshot("not-loaded")
    lab.page.unroute(parts)
    dashboard.get_by_role("button", name="Try again").click()
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, external.steps + 1)))


@IN_LAB_AND_NOTEBOOK
def test_runs_are_compared_and_a_layout_comes_back(lab: Lab, external: Driven, place: str) -> None:
    other = Driven(external.server)
    other.train(6)
    lab.open_desk()
    sidebar = show_sidebar(lab)
    for run in (external, other):
        of_run = row(sidebar, run)
        expect(of_run.locator(".jp-Tinker-numbers")).to_contain_text(f"step {run.steps}")
        expect(of_run.get_by_role("img")).to_have_attribute(
            "aria-label", re.compile(rf"over the last {run.steps} steps")
        )
        of_run.get_by_role("checkbox").check()
    sidebar.get_by_role("button", name="Compare 2 runs").click()
    dashboard = dashboard_in_view(lab)
    until(lambda: drawn_ends(dashboard) == [4, 6])
    lab.page_screenshot(f"compared-{place}")
    expect(lab.page.get_by_role("tab", name=f"Run {other.short} + 1")).to_be_visible()
    if place == "notebook":  # whose pages have no layout that could come back
        return
    until(lambda: any(name.startswith("jupyter-tinker:") for name in lab.workspace))
    until(lambda: "tinker-dashboard" in str(lab.workspace.get("layout-restorer:data")))
    lab.reload_desk()
    expect(lab.page.get_by_role("tab", name=f"Run {other.short} + 1")).to_be_visible()
    until(lambda: drawn_ends(dashboard) == [4, 6])
    expect(lab.page.get_by_role("region", name="Tinker", exact=True)).to_be_visible()


@IN_LAB_AND_NOTEBOOK
def test_a_busy_kernel_a_reload_and_a_restart_leave_it_as_it_is(lab: Lab, place: str) -> None:
    before = len(lab.runs())
    lab.open(PANEL, lab.loop())
    lab.run_all()
    until(lambda: len(lab.runs()) > before)
    run = lab.runs()[0]
    until(lambda: len(lab.steps(run)) >= 5)
    lab.command("tinker:open-dashboard", run=run)
    dashboard = lab.page.locator(".jp-Tinker-dashboard")
    until(lambda: len(lab.drawn_steps(dashboard)) > 5)
    # The panel in the notebook, the dashboard and all the rest come by one stream.
    assert lab.page.evaluate("globalThis[Symbol.for('jupyter_tinker.feeds')].size") == 1
    if place == "lab":
        until(lambda: "tinker-dashboard" in str(lab.workspace))
    lab.reload_desk()
    if place == "notebook":  # whose pages have no layout that could come back
        lab.command("tinker:open-dashboard", run=run)
    until(lambda: dashboard.count() and lab.drawn_steps(dashboard))
    # The cell that trains runs as long as this test does.
    drawn = lab.drawn_steps(dashboard)[-1]
    until(lambda: lab.drawn_steps(dashboard)[-1] > drawn + 5)
    lab.page_screenshot(f"busy-{place}")

    jupyters = {"Authorization": f"token {lab.server.token}"}
    (session,) = lab.server.fetch("api/sessions", headers=jupyters)[1]
    dashboard.evaluate("node => { node.untouched = true; }")
    path = f"api/kernels/{session['kernel']['id']}/restart"
    assert lab.server.fetch(path, method="POST", headers=jupyters)[0] == 200
    other = Driven(lab.server)
    other.train(3)
    lab.command("tinker:open-dashboard", run=other.id)
    shown = dashboard_in_view(lab)
    until(lambda: lab.drawn_steps(shown) == [1, 2, 3])
    untouched = "nodes => nodes.map(node => node.untouched ?? false)"
    assert sorted(dashboard.evaluate_all(untouched)) == [False, True]
    assert lab.steps(run)[-1]["step"] >= drawn + 5


@IN_LAB_AND_NOTEBOOK
def test_the_sidebar_and_a_dashboard_in_the_dark(
    lab: Lab, external: Driven, change_theme: Callable[[str], None], place: str
) -> None:
    lab.open_desk()
    dashboard = open_dashboard(lab, external)
    external.train(20)
    sidebar = show_sidebar(lab)
    expect(row(sidebar, external).locator(".jp-Tinker-numbers")).to_contain_text("step 24")
    lab.page_screenshot(f"dashboard-light-{place}")
    ground = "node => getComputedStyle(node).backgroundColor"
    light = [part.evaluate(ground) for part in (sidebar, dashboard)]
    change_theme("JupyterLab Dark")
    until(lambda: sidebar.evaluate(ground) != light[0])
    assert dashboard.evaluate(ground) != light[1]
    text = "chart => chart.layout.font.color"
    colour = "node => getComputedStyle(node).getPropertyValue('--jp-ui-font-color1').trim()"
    until(lambda: dashboard.locator(".jt-chart").evaluate(text) == dashboard.evaluate(colour))
    lab.page_screenshot(f"dashboard-dark-{place}")
    change_theme("JupyterLab Light")
    until(lambda: sidebar.evaluate(ground) == light[0])


def test_a_server_below_a_base_url(page: Page, start_lab: Callable[..., Server]) -> None:
    server = start_lab(base_url="/user/ada/")
    lab, external = Lab(page, server), Driven(server)
    external.train(4)
    lab.open_desk()
    dashboard = open_dashboard(lab, external)
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, 5)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.keyboard.press("Alt+t")
    page.keyboard.press("h")
    until(lambda: external.controls["learning_rate_scale"] == 0.5)
    external.train(1)
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, 6)))
    ours = [url for url in asked if "tinker" in url]
    assert ours
    assert all(url.startswith(server.url) for url in ours), ours
    server.stop()
