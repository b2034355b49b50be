"""The panel, when the server that it watches is killed."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.lab import PANEL, Lab, until
from tests.raw import RawRun
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_killed_server_leaves_no_gap_in_the_curve(
    page: Page, start_lab: Callable[..., Server]
) -> None:
    server = start_lab()
    lab = Lab(page, server)
    lab.open(PANEL)
    lab.run_all()
    lab.panel.wait_for()
    badge = lab.panel.locator(".jt-badge").nth(1)
    run = RawRun(server)  # driven by this process, and followed as soon as it starts
    run.train(range(1, 7))
    until(lambda: lab.drawn_steps() == list(range(1, 7)))
    expect(badge).to_have_text("live")

    server.stop(signal.SIGKILL)
    expect(badge).to_have_text("reconnecting")
    expect(lab.panel.locator(".jt-problem")).to_contain_text("does not answer")
    expect(lab.panel.get_by_role("button", name="Pause")).to_be_disabled()
    expect(lab.panel.locator(".jt-steering .jt-why")).to_contain_text("nothing can be changed")
    lab.screenshot("reconnecting")

    again = start_lab(server.home, port=server.port)
    run.server = again
    run.train(range(7, 13))
    expect(badge).to_have_text("live")
    until(lambda: lab.drawn_steps() == list(range(1, 13)))
    expect(lab.panel.get_by_role("button", name="Pause")).to_be_enabled()
    again.stop()
