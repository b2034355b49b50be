"""A notebook in JupyterLab on the engine's own kernel, while a client trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.lab import CONFIG, Lab, until
from tests.raw import RawRun, some_data
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CELL = """\
run = engine.runs.latest
print("now at step", run.step)
engine.delta_norms(run)
"""


def _open_on_the_engine(lab: Lab, what: str) -> None:
    """By the sidebar's buttons."""
    lab.open_desk()
    lab.command("tinker:show-sidebar")
    sidebar = lab.page.get_by_role("region", name="Tinker", exact=True)
    sidebar.get_by_role("button", name=what, exact=True).click()


def _kernel(server: Server) -> str:
    kernel: str = server.fetch("tinker/engine/attach")[1]["kernel_id"]
    return kernel


def test_a_notebook_on_the_engine_reads_interrupts_and_shuts_down(lab: Lab) -> None:
    server, run = lab.server, RawRun(lab.server)
    jupyters = {"Authorization": f"token {server.token}"}

    def step(number: int) -> str:
        run.forward_backward(2 * number - 1, some_data(number))
        return run.optim_step(2 * number)

    run.result(step(1))
    page = lab.page
    _open_on_the_engine(lab, "Notebook")
    expect(page.locator(".jp-KernelName")).to_have_text("tinker-engine")
    cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
    cell.click()
    page.keyboard.insert_text(CELL)
    lab.run_all()
    outputs = page.locator(".jp-Notebook .jp-OutputArea-output")
    expect(outputs.filter(has_text="now at step 1")).to_be_visible()
    expect(page.locator(".jp-Notebook .js-plotly-plot").first).to_be_visible()
    # The client goes on beside it.
    run.result(step(2))
    lab.run_all()
    expect(outputs.filter(has_text="now at step 2")).to_be_visible()
    # A cell that holds the client up, and the button that stops it.
    cell.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("while True: pass")
    lab.run_all()
    until(lambda: server.fetch("tinker/status")[1]["cell_seconds"])
    waiting = step(3)
    lab.command("notebook:interrupt-kernel")
    expect(page.locator(".jp-Notebook .jp-OutputArea-output")).to_contain_text("KeyboardInterrupt")
    run.result(waiting)
    # What it means to shut it down.
    kernel = _kernel(server)
    assert server.fetch(f"api/kernels/{kernel}", method="DELETE", headers=jupyters)[0] == 204
    assert server.engine_pid() is None
    run.result(step(4))
    assert server.fetch(f"tinker/runs/{run.id}")[1]["step"] == 4


def test_a_console_on_the_engine(lab: Lab) -> None:
    run = RawRun(lab.server)
    run.forward_backward(1, some_data(1))
    run.result(run.optim_step(2))
    _open_on_the_engine(lab, "Console")
    prompt = lab.page.locator(".jp-CodeConsole-promptCell .cm-content")
    prompt.click()
    lab.page.keyboard.insert_text(f"engine.runs['{run.id}'].step * 41")
    lab.page.keyboard.press("Shift+Enter")
    expect(lab.page.locator(".jp-CodeConsole .jp-OutputArea-output")).to_have_text("41")


def test_notebook_7_opens_both_in_pages_of_their_own(lab: Lab) -> None:
    run = RawRun(lab.server)
    lab.open_desk("tree")
    with lab.page.context.expect_page() as opened:
        lab.command("tinker:notebook-on-engine")
    page = opened.value
    cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
    cell.click()
    page.keyboard.insert_text(f"engine.runs['{run.id}'].step + 40")
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".jp-Notebook .jp-OutputArea-output")).to_have_text("40")
    page.close()
    with lab.page.context.expect_page() as opened:
        lab.command("tinker:console-on-engine")
    page = opened.value
    page.locator(".jp-CodeConsole-promptCell .cm-content").click()
    page.keyboard.insert_text(f"engine.runs['{run.id}'].step + 41")
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".jp-CodeConsole .jp-OutputArea-output")).to_have_text("41")
    page.close()


def test_what_cannot_be_attached_to_says_why(page: Page, start_lab: Callable[..., Server]) -> None:
    server = start_lab(config={**CONFIG, "KernelSpecManager": {"allowed_kernelspecs": ["python3"]}})
    lab = Lab(page, server)
    _open_on_the_engine(lab, "Notebook")
    toast = page.locator(".Toastify__toast")
    expect(toast).to_contain_text("allows only the kernels python3")
    assert not list((server.home / "root").glob("Untitled*.ipynb"))
    server.stop()
