"""The panel and the kernel that made it: busy, gone, begun anew, and of several versions."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.lab import BUSY, PANEL, Lab, until
from tests.raw import RawRun

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("ipykernel", ["newest", "older"])
def test_the_first_touch_of_a_busy_kernel_is_heard(
    lab: Lab, ipykernel: str, request: pytest.FixtureRequest
) -> None:
    """Nothing in the page was touched before, so no kernel can have learned to listen."""
    kernel = "python3" if ipykernel == "newest" else request.getfixturevalue("older_kernel")
    version = "import ipykernel; print(ipykernel.__version__)"
    run = lab.train(version, PANEL, kernel=kernel)
    expect(lab.output(0)).to_contain_text("7.2.0" if kernel == "older" else ".")
    assert (lab.output(0).inner_text().strip() == "7.2.0") == (kernel == "older")
    assert lab.is_busy()
    lab.slide("ArrowLeft", 30)
    changed = until(lambda: [s for s in lab.steps(run) if s["learning_rate"] < 0.51e-3])
    assert changed[-1]["learning_rate_requested"] == 1e-3
    before = lab.drawn_steps()[-1]
    until(lambda: lab.drawn_steps()[-1] > before + 5)
    assert lab.is_busy()


def test_a_page_that_is_loaded_again_shows_the_panel_again(lab: Lab) -> None:
    lab.open(PANEL, "panel.step")
    lab.run_all()
    lab.panel.wait_for()
    run = RawRun(lab.server)
    run.train(range(1, 9))
    until(lambda: lab.drawn_steps() == list(range(1, 9)))
    lab.save()
    lab.reload()
    expect(lab.panel).to_be_visible()
    until(lambda: lab.drawn_steps() == list(range(1, 9)))
    run.train(range(9, 13))
    until(lambda: lab.drawn_steps() == list(range(1, 13)))
    # And Python hears of it again.
    lab.run_cell(1)
    expect(lab.output(1)).to_contain_text("12")
    assert lab.complaints() == []


def test_a_page_that_is_loaded_again_while_a_cell_trains(lab: Lab) -> None:
    run = lab.train()
    lab.save()
    lab.reload()
    reached = lab.steps(run)[-1]["step"]
    until(lambda: lab.steps(run)[-1]["step"] > reached + 10)
    lab.end_loops()
    expect(lab.panel).to_be_visible()
    until(lambda: lab.drawn_steps() == [step["step"] for step in lab.steps(run)])
    assert lab.complaints() == []


def test_a_kernel_that_is_begun_anew(lab: Lab) -> None:
    lab.open(PANEL)
    lab.run_all()
    lab.panel.wait_for()
    run = RawRun(lab.server)
    run.train(range(1, 5))
    until(lambda: lab.drawn_steps() == list(range(1, 5)))
    lab.restart_kernel()
    expect(lab.output(0)).to_contain_text("Run the panel's cell again")
    # Watching and steering need no kernel.
    run.train(range(5, 7))
    until(lambda: lab.drawn_steps() == list(range(1, 7)))
    lab.panel.get_by_role("button", name="Pause").click()
    expect(lab.panel.get_by_role("button", name="Resume")).to_be_visible()
    lab.screenshot("kernel-gone")
    lab.run_all()
    expect(lab.output(0)).not_to_contain_text("Run the panel's cell again")
    until(lambda: lab.drawn_steps() == list(range(1, 7)))
    lab.panel.get_by_role("button", name="Resume").click()
    expect(lab.panel.get_by_role("button", name="Pause")).to_be_visible()


def test_a_page_that_is_loaded_after_its_kernel_ended_says_so(lab: Lab) -> None:
    lab.open(PANEL)
    lab.run_all()
    lab.panel.wait_for()
    lab.save()
    lab.restart_kernel()
    lab.reload()
    expect(lab.output(0)).to_contain_text("model not found")  # ipywidgets' own words
    lab.run_all()
    expect(lab.panel).to_be_visible()


def test_a_run_of_another_process_is_shown_and_steered_beside_a_busy_kernel(lab: Lab) -> None:
    lab.open(PANEL, lab.loop(BUSY))
    lab.run_all()
    lab.panel.wait_for()
    until(lab.is_busy)
    run = RawRun(lab.server)
    run.train(range(1, 5))
    until(lambda: lab.drawn_steps() == list(range(1, 5)))
    exact = lab.panel.get_by_label("Learning rate scale, exactly")
    exact.fill("0.5")
    exact.press("Enter")
    expect(lab.panel.locator(".jt-list")).to_contain_text("0.5")
    run.train(range(5, 7))
    assert [step["learning_rate"] for step in lab.steps(run.id)] == [1e-2] * 4 + [0.5e-2] * 2
    until(lambda: lab.drawn_steps() == list(range(1, 7)))
    assert lab.is_busy()
