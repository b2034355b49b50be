"""The sidebar: what the engine computes with, who drives a run, and keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import expect

from tests.browser.desk import IN_LAB_AND_NOTEBOOK, row, show_sidebar
from tests.browser.driven import Driven
from tests.browser.lab import Lab

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# Of a run's row, were its model's name a long one: by how much its id is cut off, in pixels.
CUT = """node => {
    node.querySelector('.jp-Tinker-model').textContent = 'a-model-with-a-name-of-some-length';
    const [whole, id] = [node, node.lastElementChild].map(part => part.getBoundingClientRect());
    return id.right - whole.right;
}"""


def test_the_engine_and_the_session_that_owns_a_run(lab: Lab, external: Driven) -> None:
    lab.open_desk()
    sidebar = show_sidebar(lab)
    engine = lab.server.fetch("tinker/status")[1]["status"]
    memory = lab.steps(external.id)[-1]["memory_bytes"] / 2**20
    of = engine["memory_total_bytes"] / 2**30
    values = sidebar.locator(".jp-Tinker-facts dd")
    assert engine["device"] == "cpu"
    expect(values).to_have_text(
        [f"cpu · float32 · {engine['attention']}", f"{memory:.0f} MiB of {of:.1f} GiB", "tiny"]
    )
    owned = row(sidebar, external).locator(".jp-Tinker-from")
    expect(owned).to_contain_text(f"jupyter · session {external.session_id[:8]} · rank 4")
    expect(owned).to_have_attribute("title", f"Session {external.session_id}")
    assert row(sidebar, external).locator(".jp-Tinker-name").evaluate(CUT) <= 0.5
    lab.page_screenshot("sidebar")


@IN_LAB_AND_NOTEBOOK
def test_keys_are_shown_once_and_revoked(lab: Lab, place: str) -> None:
    lab.open_desk()
    sidebar = show_sidebar(lab)
    laptop = f"a laptop beside {place}"
    name = sidebar.get_by_label("Name of a new key")
    name.fill(laptop)
    name.press("Enter")
    secret = sidebar.locator(".jp-Tinker-secret code")
    key = secret.inner_text()
    expect(secret).to_be_in_viewport(ratio=1)
    assert lab.server.fetch("tinker/status", key=key)[0] == 200
    run = Driven(replace(lab.server, token=key.removeprefix("tml-")))
    owned = row(sidebar, run).locator(".jp-Tinker-from")
    expect(owned).to_contain_text(f"key {laptop} · session {run.session_id[:8]}")
    lab.page_screenshot(f"key-{place}")
    name.fill(laptop)
    name.press("Enter")
    expect(sidebar.get_by_role("alert")).to_contain_text(f"There is a key named '{laptop}' already")
    sidebar.get_by_role("button", name="Hide").click()
    assert key not in lab.page.content()
    sidebar.get_by_role("button", name=f"Revoke the key {laptop}").click()
    dialog = lab.page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel").click()
    assert lab.server.fetch("tinker/status", key=key)[0] == 200
    sidebar.get_by_role("button", name=f"Revoke the key {laptop}").click()
    dialog.get_by_role("button", name="Revoke").click()
    revoked = sidebar.locator(".jp-Tinker-line[data-revoked]").filter(has_text=laptop)
    expect(revoked).to_be_visible()
    assert lab.server.fetch("tinker/status", key=key)[0] == 401
