"""A browser, JupyterLab on a real server, and notebooks that train in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, Playwright, expect, sync_playwright

from tests.browser.lab import Lab
from tests.servers import Server, start_server

# The same server has the pages of Notebook 7, too.
CONFIG = {app: {"expose_app_in_browser": True} for app in ("LabApp", "JupyterNotebookApp")}
# JupyterLab's question whether one wants its news would lie over the panel.
SETTINGS = "config/lab/user-settings/@jupyterlab/apputils-extension"
APP = ("-m", "jupyterlab")
BUILT = Path(__file__).parents[2] / "jupyter_tinker" / "labextension"


def _chromium() -> tuple[str | None, str]:
    """Where a Chromium is (None: where playwright keeps its own), and where it came from."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found, "the path"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        done = subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=False)
        if done.returncode == 0 and (found := shutil.which("chromium")):
            return found, "Debian's package"
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)
    return None, "playwright install"


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """Only while it is used: its loop runs all the time, so that no other could in this process."""
    expect.set_options(timeout=30_000)  # a busy machine is slow, and not wrong
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """A missing browser is an error: nothing here is skipped."""
    path, origin = _chromium()
    try:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
    except Error as error:
        pytest.fail(f"No Chromium starts ({origin}): {error}")
    print(f"Chromium {started.version} from {origin}", file=sys.stderr)
    yield started
    started.close()


@pytest.fixture(scope="session")
def start_lab(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path
) -> Iterator[Callable[..., Server]]:
    """Starts JupyterLab, with a home of its own unless one is given."""
    servers: list[Server] = []
    assert (BUILT / "package.json").exists(), "JupyterLab's extension is not built: run make panel"
    # What this checkout has built goes before what is installed.
    share = tmp_path_factory.mktemp("share")
    (share / "labextensions").mkdir()
    (share / "labextensions" / "jupyter-tinker").symlink_to(BUILT)
    env = {"JUPYTER_PATH": str(share)}

    def _start(home: Path | None = None, **options: Any) -> Server:
        home = home or tmp_path_factory.mktemp("lab")
        settings = home / SETTINGS / "notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text('{"fetchNews": "false"}')
        models = {"tiny": tiny_model_dir}
        started = start_server(home, app=APP, models=models, config=CONFIG, env=env, **options)
        servers.append(started)
        return servers[-1]

    yield _start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def lab_server(start_lab: Callable[..., Server]) -> Server:
    return start_lab()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Its last look is kept in the folder that TINKER_SCREENSHOTS names, if it does."""
    context = browser.new_context(viewport={"width": 1300, "height": 1150})
    context.set_default_timeout(60_000)
    page = context.new_page()
    yield page
    if folder := os.environ.get("TINKER_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"end-of-{request.node.name}.png")
    context.close()


@pytest.fixture
def lab(page: Page, lab_server: Server) -> Iterator[Lab]:
    """A page of JupyterLab; the loops that it runs end with the test."""
    opened = Lab(page, lab_server)
    yield opened
    opened.close()
