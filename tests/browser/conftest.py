"""A browser, JupyterLab on a real server, and notebooks that train in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, Playwright, expect, sync_playwright

from tests.browser.chromium import chromium
from tests.browser.driven import Driven
from tests.browser.lab import CONFIG, LAB, Lab, prepare, screenshot_path, until
from tests.servers import Server, start_server

BUILT = Path(__file__).parents[2] / "jupyter_tinker" / "labextension"
CHROMIUM = pytest.StashKey[str]()  # which one the tests look with
# Its kernels run a widget's callbacks beside a busy cell, which those of 7.4.0 do not.
OLDER_IPYKERNEL = "7.2.0"


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Only while it is used: its loop runs all the time, so that no other could in this process."""
    expect.set_options(timeout=60_000)  # a machine that has other things to do takes its time
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A missing browser is an error: nothing here is skipped."""
    path, origin = chromium()
    try:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
    except Error as error:
        pytest.fail(f"No Chromium starts ({origin}): {error}")
    where = path or playwright.chromium.executable_path
    request.config.stash[CHROMIUM] = f"Chromium {started.version} at {where}, from {origin}"
    yield started
    started.close()


@pytest.fixture(scope="session")
def start_lab(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> Iterator[Callable[..., Server]]:
    """Starts JupyterLab, or another app, with a home of its own unless one is given."""
    servers: list[Server] = []
    assert (BUILT / "package.json").exists(), "JupyterLab's extension is not built: run make panel"
    # What this checkout has built goes before what is installed.
    share = tmp_path_factory.mktemp("share")
    (share / "labextensions").mkdir()
    (share / "labextensions" / "jupyter-tinker").symlink_to(BUILT)
    env = {"JUPYTER_PATH": str(share)}

    def _start(home: Path | None = None, **options: Any) -> Server:
        home = home or tmp_path_factory.mktemp("lab")
        prepare(home)
        models = {"tiny": tiny_model_dir}
        options = {"app": LAB, "config": CONFIG, "models": models, **options}
        options["env"] = {**env, **options.get("env", {})}
        servers.append(start_server(home, **options))
        return servers[-1]

    yield _start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def lab_server(start_lab: Callable[..., Server]) -> Server:
    return start_lab()


@pytest.fixture(scope="session")
def older_kernel(lab_server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a kernel with an ipykernel that is older than the one that is installed."""
    folder = tmp_path_factory.mktemp("ipykernel")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder))
    subprocess.run([*pip, f"ipykernel=={OLDER_IPYKERNEL}"], check=True)
    spec = lab_server.home / "data" / "kernels" / "older" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    path = os.pathsep.join((str(folder), lab_server.env["PYTHONPATH"]))
    about = {"argv": argv, "display_name": "older", "env": {"PYTHONPATH": path}}
    spec.write_text(json.dumps({**about, "language": "python"}))
    return "older"


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Its last look is kept in the folder that TINKER_SCREENSHOTS names, if it does."""
    # What a process of its own prints is not seen: the reports carry it.
    request.node.user_properties.append(("chromium", request.config.stash[CHROMIUM]))
    context = browser.new_context(viewport={"width": 1300, "height": 1150})
    context.set_default_timeout(150_000)
    page = context.new_page()
    yield page
    if path := screenshot_path(f"end-of-{request.node.name}"):
        page.screenshot(path=path)
    context.close()


@pytest.fixture
def place() -> str:
    """Where `lab` is: tests name other places by their parameters."""
    return "lab"


@pytest.fixture
def lab(page: Page, lab_server: Server, place: str) -> Iterator[Lab]:
    """A page of JupyterLab, or of Notebook 7; the loops that it runs end with the test."""
    opened = Lab(page, lab_server, place)
    yield opened
    opened.close()


@pytest.fixture
def external(lab_server: Server) -> Driven:
    """A run of four steps, driven by a client that is none of the browser's kernels."""
    run = Driven(lab_server)
    run.train(4)
    return run


@pytest.fixture
def change_theme(lab: Lab) -> Iterator[Callable[[str], None]]:
    """Changes JupyterLab's theme; the server would keep it for other tests."""

    def _change(theme: str) -> None:
        lab.command("apputils:change-theme", theme=theme)
        light = "document.body.dataset.jpThemeLight"
        until(lambda: lab.page.evaluate(light) == str(theme.endswith("Light")).lower())

    yield _change
    _change("JupyterLab Light")
