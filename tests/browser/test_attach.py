"""A notebook or a console on the engine's own kernel, while a client trains."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.desk import IN_LAB_AND_NOTEBOOK, IN_LAB_AND_TREE, show_sidebar
from tests.browser.driven import Driven
from tests.browser.lab import CONFIG, Lab, until
from tests.raw import RawRun, some_data
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CELL = """\
run = engine.runs.latest
print("now at step", run.step)
engine.delta_norms(run)
"""
READ = """\
run = engine.runs["{run}"]
layer = run.adapter["model.layers.0.self_attn.q_proj"]
print(f"A {{layer.A.norm():.9g}} delta {{layer.delta_norm:.9g}} of step {{run.step}}")
engine.delta_norms(run)
"""


class Reading(NamedTuple):
    """What the cell `READ` says, as it says it."""

    norm: str
    delta: str
    step: str


def _open_by(lab: Lab, button: Locator) -> Lab:
    """What a button opens on the engine: in JupyterLab beside it, in Notebook in a page of its
    own."""
    if lab.place == "lab":
        button.click()
        return lab
    with lab.page.context.expect_page() as opened:
        button.click()
    return Lab(opened.value, lab.server, lab.place)


def _open_by_sidebar(lab: Lab, what: str) -> Lab:
    lab.open_desk()
    return _open_by(lab, show_sidebar(lab).get_by_role("button", name=what, exact=True))


def _type(lab: Lab, text: str, prompt: str = ".jp-Notebook .jp-Cell") -> None:
    """In the place of what is there; a console that just opens makes a new prompt when its kernel
    has said what it is."""
    prompted = lab.page.locator(f"{prompt} .cm-content").first

    def typed() -> bool:
        prompted.click()
        lab.page.keyboard.press("Control+a")
        lab.page.keyboard.insert_text(text)
        lab.page.wait_for_timeout(200)
        return text.splitlines()[-1] in prompted.inner_text()

    until(typed)


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
    _open_by_sidebar(lab, "Notebook")
    expect(page.locator(".jp-KernelName")).to_have_text("tinker-engine")
    _type(lab, CELL)
    lab.run_all()
    outputs = page.locator(".jp-Notebook .jp-OutputArea-output")
    expect(outputs.filter(has_text="now at step 1")).to_be_visible()
    expect(page.locator(".jp-Notebook .js-plotly-plot").first).to_be_visible()
    # The client goes on beside it.
    run.result(step(2))
    lab.run_all()
    expect(outputs.filter(has_text="now at step 2")).to_be_visible()
    # A cell that holds the client up, and the button that stops it.
    _type(lab, "while True: pass")
    lab.run_all()
    until(lambda: server.fetch("tinker/status")[1]["cell_seconds"])
    waiting = step(3)
    lab.command("notebook:interrupt-kernel")
    expect(outputs).to_contain_text("KeyboardInterrupt")
    run.result(waiting)
    # What it means to shut it down.
    kernel = _kernel(server)
    assert server.fetch(f"api/kernels/{kernel}", method="DELETE", headers=jupyters)[0] == 204
    assert server.engine_pid() is None
    run.result(step(4))
    assert server.fetch(f"tinker/runs/{run.id}")[1]["step"] == 4


@IN_LAB_AND_NOTEBOOK
def test_who_reads_weights_while_a_client_trains_changes_no_number(lab: Lab, place: str) -> None:
    run = Driven(lab.server)
    with run.training():
        until(lambda: run.steps)
        attached = _open_on_the_engine(lab)
        expect(attached.page.locator(".jp-KernelName")).to_have_text("tinker-engine")
        _type(attached, READ.format(run=run.id))
        seen = [Reading("", "", "0")]
        while len(seen) < 4:
            seen.append(_read(attached, after=seen[-1]))
            # What the engine has made before the client knows of it may be what was read.
            until(lambda: run.steps > int(seen[-1].step))
        expect(attached.page.locator(".jp-Notebook .js-plotly-plot").first).to_be_visible()
        attached.page_screenshot(f"read-while-training-{place}")
    assert len({reading.norm for reading in seen}) == len({reading.delta for reading in seen}) == 4
    alone = Driven(lab.server)
    alone.train(run.steps)
    assert run.losses == alone.losses


def _open_on_the_engine(lab: Lab) -> Lab:
    """A notebook: by the launcher's card, or by the sidebar where there is no launcher."""
    if lab.place != "lab":
        return _open_by_sidebar(lab, "Notebook")
    lab.open_desk()
    cards = lab.page.locator(".jp-LauncherCard")
    return _open_by(lab, cards.filter(has_text="Open Notebook on the Engine"))


def _read(lab: Lab, after: Reading) -> Reading:
    """Run the cell; what it says of the weights, as soon as that is of another step."""
    output = lab.page.locator(".jp-Notebook .jp-OutputArea-output")

    def told() -> Reading | None:
        said = re.search(r"A (\S+) delta (\S+) of step (\d+)", " ".join(output.all_inner_texts()))
        reading = Reading(*said.groups()) if said else after
        return reading if int(reading.step) > int(after.step) else None

    lab.run_all()
    reading: Reading = until(told)
    return reading


@IN_LAB_AND_TREE
def test_a_console_on_the_engine(lab: Lab, place: str) -> None:
    run = Driven(lab.server)
    run.train()
    opened = _open_by_sidebar(lab, "Console")
    expect(opened.page.locator(".jp-CodeConsole")).to_contain_text("This is the Tinker engine")
    _type(opened, f"engine.runs['{run.id}'].step * 41", ".jp-CodeConsole-promptCell")
    opened.page.keyboard.press("Shift+Enter")
    expect(opened.page.locator(".jp-CodeConsole .jp-OutputArea-output")).to_have_text("41")


def test_what_cannot_be_attached_to_says_why(page: Page, start_lab: Callable[..., Server]) -> None:
    server = start_lab(config={**CONFIG, "KernelSpecManager": {"allowed_kernelspecs": ["python3"]}})
    lab = Lab(page, server)
    lab.open_desk()
    show_sidebar(lab).get_by_role("button", name="Notebook", exact=True).click()
    toast = page.locator(".Toastify__toast")
    expect(toast).to_contain_text("allows only the kernels python3")
    assert not list((server.home / "root").glob("Untitled*.ipynb"))
    server.stop()
