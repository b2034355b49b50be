"""JupyterLab's extension: runs are watched and steered without a kernel, and beside a busy one."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Locator, Page, TimeoutError, expect

from tests.browser.lab import PANEL, Lab, screenshot_path, until
from tests.raw import RawRun, some_data
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

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


class External(RawRun):
    """A run that a client of another process drives, a step at a time."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.steps = 0

    @property
    def short(self) -> str:
        return f"{self.session_id[:8]}:0"

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.steps += 1
            self.loss(self.forward_backward(2 * self.steps - 1, some_data(self.steps)))
            self.result(self.optim_step(2 * self.steps))

    def steer(self, **fields: Any) -> dict[str, Any]:
        status, answer = self.server.fetch(f"tinker/runs/{self.id}/controls", fields)
        assert status == 200, answer
        return answer

    @property
    def controls(self) -> dict[str, Any]:
        controls: dict[str, Any] = self.server.fetch(f"tinker/runs/{self.id}/controls")[1]
        return controls


@pytest.fixture
def external(lab_server: Server) -> External:
    run = External(lab_server)
    run.train(4)
    return run


def _keep(page: Page, name: str) -> None:
    """The whole page, in the folder that TINKER_SCREENSHOTS names, if it does."""
    if path := screenshot_path(name):
        page.wait_for_timeout(800)
        page.screenshot(path=path)


def _sidebar(lab: Lab) -> Locator:
    lab.command("tinker:show-sidebar")
    sidebar = lab.page.get_by_role("region", name="Tinker", exact=True)
    expect(sidebar).to_be_visible()
    return sidebar


def _row(sidebar: Locator, run: External) -> Locator:
    return sidebar.locator(".jp-Tinker-run").filter(has_text=run.short)


def _dashboard(lab: Lab, run: External) -> Locator:
    """A run's dashboard, opened from the sidebar."""
    _row(_sidebar(lab), run).get_by_role("button", name=run.short).first.click()
    dashboard = lab.page.locator(".jp-Tinker-dashboard:visible")
    expect(dashboard.locator(".jt-badge").nth(1)).to_have_text("live")
    return dashboard


def _palette(lab: Lab) -> set[str]:
    """What the palette offers of Tinker. It closes when a page that still opens takes the focus."""
    field = lab.page.locator(".lm-CommandPalette-input")
    items = lab.page.locator(".lm-CommandPalette-item")

    def offered() -> set[str]:
        if not field.is_visible():
            lab.command("apputils:activate-command-palette")
            lab.page.wait_for_timeout(500)
        try:
            field.fill("tinker", timeout=2_000)
        except TimeoutError:
            return set()
        lab.page.wait_for_timeout(500)
        return {text for text in items.all_inner_texts() if text}

    until(lambda: len(offered()) >= len(COMMANDS))
    return offered()


def _drawn_ends(dashboard: Locator) -> list[int]:
    """The last steps of all curves of a dashboard, as they are drawn."""
    ends = "chart => (chart.data ?? []).map(({ x }) => x[x.length - 1]).filter(Boolean)"
    return sorted(set(dashboard.locator(".jt-chart").evaluate(ends)))


def _toast(page: Page, text: str) -> Locator:
    return page.locator(".Toastify__toast").filter(has_text=text)


def test_the_palette_the_launcher_and_the_status_bar(lab: Lab, external: External) -> None:
    lab.open_desk()
    status = lab.page.locator(".jp-Tinker-status")
    expect(status).to_have_text(
        re.compile(rf"^Tinker engine running · step {external.steps} · loss \d")
    )
    offered = _palette(lab)
    for label in COMMANDS:
        assert any(label in item and "Alt+T" in item for item in offered), offered
    _keep(lab.page, "palette")
    lab.page.keyboard.press("Escape")
    lab.page.locator(".jp-LauncherCard", has_text="Runs").first.click()
    dashboard = lab.page.locator(".jp-Tinker-dashboard:visible")
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, 5)))
    external.train(3)
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, 8)))
    expect(status).to_contain_text("step 7")


def test_a_dashboard_that_cannot_be_loaded_says_so(lab: Lab, external: External) -> None:
    lab.open_desk()
    # What draws curves is a part of its own, which is asked for with the first dashboard.
    parts = "**/lab/extensions/jupyter-tinker/static/*.js*"
    lab.page.route(parts, lambda route: route.abort())
    _row(_sidebar(lab), external).get_by_role("button", name=external.short).first.click()
    dashboard = lab.page.locator(".jp-Tinker-dashboard:visible")
    expect(dashboard.get_by_role("alert")).to_contain_text("could not be loaded")
    _keep(lab.page, "not-loaded")
    lab.page.unroute(parts)
    dashboard.get_by_role("button", name="Try again").click()
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, external.steps + 1)))


def test_shortcuts_steer_the_run_in_view_and_a_pause_is_told(lab: Lab, external: External) -> None:
    newer = External(external.server)
    lab.open_desk()
    dashboard = _dashboard(lab, external)
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
    toast = _toast(lab.page, f"Run {external.short} is paused at step 4")
    expect(toast).to_be_visible()
    expect(_row(_sidebar(lab), external).locator(".jp-Tinker-state")).to_have_text("paused")
    _keep(lab.page, "paused")
    toast.get_by_role("button", name="Resume").click()
    until(lambda: not external.controls["paused"])
    assert newer.controls["learning_rate_scale"] == 1
    assert not newer.controls["paused"]


def test_guards_are_told_and_settings_silence_pauses(lab: Lab, external: External) -> None:
    lab.open_desk()
    expect(lab.page.locator(".jp-Tinker-status")).to_contain_text("step 4")
    external.steer(guards={"plateau": {"min_delta": 100.0, "patience": 2}})
    external.train(3)
    guard = _toast(lab.page, f"Run {external.short} is paused by a guard at step")
    expect(guard).to_have_count(1)
    expect(_toast(lab.page, external.short)).to_have_count(1)
    external.steer(guards={"plateau": None}, paused=False)
    lab.page.evaluate(
        """() => window.jupyterapp.serviceManager.settings.save(
             "jupyter-tinker:plugin", '{"notifications": {"paused": false}}')"""
    )
    lab.page.wait_for_timeout(1_100)  # a page tells what happened in the second of its opening
    lab.page.reload()
    lab.page.wait_for_function("window.jupyterapp?.restored")
    expect(lab.page.locator(".jp-Tinker-status")).to_contain_text("step 7")
    # Neither what happened before the page was opened, nor a pause.
    external.steer(paused=True)
    expect(lab.page.locator(".jp-Tinker-status")).to_contain_text("paused")
    external.steer(paused=False, guards={"plateau": {"min_delta": 100.0, "patience": 1}})
    external.train(2)
    expect(guard).to_have_count(1)
    expect(_toast(lab.page, external.short)).to_have_count(1)
    external.steer(guards={"plateau": None}, paused=False)
    lab.page.evaluate(
        """() => window.jupyterapp.serviceManager.settings.save("jupyter-tinker:plugin", '{}')"""
    )


def test_a_dead_engine_a_revival_and_an_end_are_told(lab: Lab, external: External) -> None:
    lab.open_desk()
    sidebar = _sidebar(lab)
    live, past = (sidebar.get_by_role("list", name=f"{name} runs") for name in ("Live", "Past"))
    expect(live).to_contain_text(external.short)
    pid = lab.server.engine_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    expect(_toast(lab.page, "The engine died")).to_be_visible()
    external.train(2)
    expect(_toast(lab.page, f"Run {external.short} is back at step 4")).to_be_visible()
    expect(sidebar.get_by_text("running", exact=True)).to_be_visible()
    status, _ = external.post(
        f"sessions/{external.session_id}/finish", {"reason": {"type": "success"}}
    )
    assert status == 200
    expect(_toast(lab.page, f"Run {external.short} has ended")).to_be_visible()
    expect(past).to_contain_text(external.short)
    expect(live.get_by_role("button", name=f"Pause run {external.short}")).to_have_count(0)
    _keep(lab.page, "past")


def test_runs_are_compared_and_the_layout_comes_back(lab: Lab, external: External) -> None:
    other = External(external.server)
    other.train(6)
    lab.open_desk()
    sidebar = _sidebar(lab)
    for run in (external, other):
        row = _row(sidebar, run)
        expect(row.locator(".jp-Tinker-numbers")).to_contain_text(f"step {run.steps}")
        expect(row.get_by_role("img")).to_have_attribute(
            "aria-label", re.compile(rf"over the last {run.steps} steps")
        )
        row.get_by_role("checkbox").check()
    sidebar.get_by_role("button", name="Compare 2 runs").click()
    dashboard = lab.page.locator(".jp-Tinker-dashboard:visible")
    until(lambda: _drawn_ends(dashboard) == [4, 6])
    _keep(lab.page, "compared")
    workspace = lab.page.url.split("/workspaces/")[1].split("?")[0].split("/")[0]
    jupyters = {"Authorization": f"token {lab.server.token}"}

    def saved() -> Any:
        path = f"lab/api/workspaces/{workspace}"
        return lab.server.fetch(path, headers=jupyters)[1].get("data", {})

    until(lambda: any(name.startswith("jupyter-tinker:") for name in saved()))
    until(lambda: "tinker-dashboard" in str(saved().get("layout-restorer:data")))
    lab.page.reload()
    title = f"Run {other.short} + 1"
    expect(lab.page.get_by_role("tab", name=title)).to_be_visible()
    until(lambda: _drawn_ends(dashboard) == [4, 6])
    expect(lab.page.get_by_role("region", name="Tinker", exact=True)).to_be_visible()


def test_keys_are_shown_once_and_revoked(lab: Lab) -> None:
    lab.open_desk()
    sidebar = _sidebar(lab)
    name = sidebar.get_by_label("Name of a new key")
    name.fill("a laptop")
    name.press("Enter")
    secret = sidebar.locator(".jp-Tinker-secret code")
    key = secret.inner_text()
    assert lab.server.fetch("tinker/status", key=key)[0] == 200
    _keep(lab.page, "key")
    name.fill("a laptop")
    name.press("Enter")
    expect(sidebar.get_by_role("alert")).to_contain_text("There is a key named 'a laptop' already")
    sidebar.get_by_role("button", name="Hide").click()
    assert key not in lab.page.content()
    sidebar.get_by_role("button", name="Revoke the key a laptop").click()
    dialog = lab.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").click()
    assert lab.server.fetch("tinker/status", key=key)[0] == 200
    sidebar.get_by_role("button", name="Revoke the key a laptop").click()
    dialog.get_by_role("button", name="Revoke").click()
    expect(sidebar.locator(".jp-Tinker-line[data-revoked]")).to_contain_text("a laptop")
    assert lab.server.fetch("tinker/status", key=key)[0] == 401


def test_a_busy_kernel_a_reload_and_a_restart_leave_it_as_it_is(lab: Lab) -> None:
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
    workspace = lab.page.url.split("/workspaces/")[1].split("?")[0].split("/")[0]
    jupyters = {"Authorization": f"token {lab.server.token}"}
    saved = f"lab/api/workspaces/{workspace}"
    until(lambda: "tinker-dashboard" in str(lab.server.fetch(saved, headers=jupyters)[1]))
    lab.page.reload()
    until(lambda: dashboard.count() and lab.drawn_steps(dashboard))
    # The cell that trains runs as long as this test does.
    drawn = lab.drawn_steps(dashboard)[-1]
    until(lambda: lab.drawn_steps(dashboard)[-1] > drawn + 5)
    _keep(lab.page, "busy")

    (session,) = lab.server.fetch("api/sessions", headers=jupyters)[1]
    dashboard.evaluate("node => { node.untouched = true; }")
    path = f"api/kernels/{session['kernel']['id']}/restart"
    assert lab.server.fetch(path, method="POST", headers=jupyters)[0] == 200
    other = External(lab.server)
    other.train(3)
    lab.command("tinker:open-dashboard", run=other.id)
    shown = lab.page.locator(".jp-Tinker-dashboard:visible")
    until(lambda: lab.drawn_steps(shown) == [1, 2, 3])
    untouched = "nodes => nodes.map(node => node.untouched ?? false)"
    assert sorted(dashboard.evaluate_all(untouched)) == [False, True]
    assert lab.steps(run)[-1]["step"] >= drawn + 5


def test_the_sidebar_and_a_dashboard_in_the_dark(
    lab: Lab, external: External, change_theme: Callable[[str], None]
) -> None:
    lab.open_desk()
    dashboard = _dashboard(lab, external)
    external.train(20)
    sidebar = _sidebar(lab)
    expect(_row(sidebar, external).locator(".jp-Tinker-numbers")).to_contain_text("step 24")
    _keep(lab.page, "dashboard-light")
    ground = "node => getComputedStyle(node).backgroundColor"
    light = [part.evaluate(ground) for part in (sidebar, dashboard)]
    change_theme("JupyterLab Dark")
    until(lambda: sidebar.evaluate(ground) != light[0])
    assert dashboard.evaluate(ground) != light[1]
    text = "chart => chart.layout.font.color"
    colour = "node => getComputedStyle(node).getPropertyValue('--jp-ui-font-color1').trim()"
    until(lambda: dashboard.locator(".jt-chart").evaluate(text) == dashboard.evaluate(colour))
    _keep(lab.page, "dashboard-dark")
    change_theme("JupyterLab Light")
    until(lambda: sidebar.evaluate(ground) == light[0])


@pytest.mark.parametrize("place", ["tree", "notebook"])
def test_notebook_7(lab: Lab, external: External, place: str) -> None:
    if place == "notebook":
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, lab.server.home / "root" / "empty.ipynb")
    lab.open_desk("tree" if place == "tree" else "notebooks/empty.ipynb")
    offered = _palette(lab)
    _keep(lab.page, f"notebook-7-{place}-palette")
    for label in COMMANDS:
        assert any(label in item for item in offered), offered
    lab.page.keyboard.press("Escape")
    dashboard = _dashboard(lab, external)
    until(lambda: lab.drawn_steps(dashboard) == list(range(1, 5)))
    external.steer(paused=True)
    expect(_toast(lab.page, f"Run {external.short} is paused")).to_be_visible()
    _keep(lab.page, f"notebook-7-{place}")
    external.steer(paused=False)


def test_a_server_below_a_base_url(page: Page, start_lab: Callable[..., Server]) -> None:
    server = start_lab(base_url="/user/ada/")
    lab, external = Lab(page, server), External(server)
    external.train(4)
    lab.open_desk()
    dashboard = _dashboard(lab, external)
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
