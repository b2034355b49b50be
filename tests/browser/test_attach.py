"""A notebook in JupyterLab on the engine's own kernel, while a client trains."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Lab, until
from tests.raw import RawRun, some_data

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CELL = """\
run = engine.runs.latest
print("now at step", run.step)
engine.delta_norms(run)
"""


def test_a_notebook_on_the_engine_reads_interrupts_and_shuts_down(lab: Lab) -> None:
    server, run = lab.server, RawRun(lab.server)
    jupyters = {"Authorization": f"token {server.token}"}

    def step(number: int) -> str:
        run.forward_backward(2 * number - 1, some_data(number))
        return run.optim_step(2 * number)

    run.result(step(1))
    kernel = server.fetch("tinker/engine/attach", {})[1]["kernel_id"]
    page = lab.page
    page.goto(f"{server.root}lab?reset&token={server.token}")
    page.wait_for_function("window.jupyterapp?.commands?.hasCommand('notebook:create-new')")
    lab.command("notebook:create-new", kernelId=kernel, kernelName="tinker-engine")
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
    assert server.fetch(f"api/kernels/{kernel}", method="DELETE", headers=jupyters)[0] == 204
    assert server.engine_pid() is None
    run.result(step(4))
    assert server.fetch(f"tinker/runs/{run.id}")[1]["step"] == 4
