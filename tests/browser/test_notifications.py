"""What people are told of, whichever page they have open."""

from __future__ import annotations

import os
import signal

import pytest
from playwright.sync_api import expect

from tests.browser.desk import IN_LAB_AND_NOTEBOOK, row, show_sidebar, toast
from tests.browser.driven import Driven
from tests.browser.lab import Lab
from tests.raw import some_data

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@IN_LAB_AND_NOTEBOOK
def test_a_guard_and_a_failure_are_told_once_each(lab: Lab, external: Driven, place: str) -> None:
    lab.open_desk()
    expect(row(show_sidebar(lab), external)).to_contain_text("step 4")
    external.steer(guards={"plateau": {"min_delta": 100.0, "patience": 2}})
    external.train(3)
    guard = toast(lab, f"Run {external.short} is paused by a guard at step")
    expect(guard).to_have_count(1)
    expect(toast(lab, external.short)).to_have_count(1)
    external.steer(guards={"plateau": None}, paused=False)
    lab.page.wait_for_timeout(1_100)  # a page tells what happened in the second of its opening
    lab.reload_desk()
    expect(row(show_sidebar(lab), external)).to_contain_text("step 7")
    refused = external.forward_backward(15, some_data(8), loss="none_such")
    external.error(refused)
    expect(toast(lab, f"Run {external.short}: forward_backward failed at step 7")).to_be_visible()
    # Nothing of what happened before the page was opened.
    expect(toast(lab, external.short)).to_have_count(1)
    lab.page_screenshot(f"failed-{place}")


@IN_LAB_AND_NOTEBOOK
def test_a_dead_engine_a_revival_and_an_end_are_told(
    lab: Lab, external: Driven, place: str
) -> None:
    lab.open_desk()
    sidebar = show_sidebar(lab)
    live, past = (sidebar.get_by_role("list", name=f"{name} runs") for name in ("Live", "Past"))
    expect(live).to_contain_text(external.short)
    pid = lab.server.engine_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    expect(toast(lab, "The engine died")).to_be_visible()
    external.train(2)
    expect(toast(lab, f"Run {external.short} is back at step 4")).to_be_visible()
    expect(sidebar.get_by_text("running", exact=True)).to_be_visible()
    status, _ = external.post(
        f"sessions/{external.session_id}/finish", {"reason": {"type": "success"}}
    )
    assert status == 200
    expect(toast(lab, f"Run {external.short} has ended")).to_be_visible()
    expect(past).to_contain_text(external.short)
    expect(live.get_by_role("button", name=f"Pause run {external.short}")).to_have_count(0)
    lab.page_screenshot(f"past-{place}")
