"""Binder's steps, taken in an environment of their own, and the memory that its users get."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from packaging.specifiers import SpecifierSet
from playwright.sync_api import Page, expect

from tests import environments
from tests.browser.lab import CONFIG, LAB, Lab, prepare, until
from tests.environments import REPOSITORY, Environment
from tests.servers import Server, start_server

BINDER = REPOSITORY / "binder"
# Bytes, see https://mybinder.readthedocs.io/en/latest/about/user-guidelines.html
GRANTED = 2 * 2**30
PLATFORM = "--Repo2Docker.platform=linux/amd64"  # Binder's, whatever this machine is
QUICKSTART = nbformat.read(REPOSITORY / "notebooks" / "quickstart.ipynb", as_version=4)


def _copy(folder: Path) -> Path:
    """The repository as git has it, with what is not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


class Memory:
    """The most that a server, its kernels and all their children used at once; what several share
    is counted once. The browser does not count: on Binder that is elsewhere."""

    def __init__(self, server: int) -> None:
        self.at_peak: dict[str, int] = {}  # the bytes of each, by its command
        self._server = psutil.Process(server)

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.at_peak.values())

    def look(self) -> None:
        sizes: dict[str, int] = {}
        with suppress(psutil.NoSuchProcess):
            for each in [self._server, *self._server.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    name = f"{each.pid} {' '.join(each.cmdline())[-60:]}"
                    sizes[name] = each.memory_full_info().pss
        if sum(sizes.values()) > self.peak:
            self.at_peak = sizes


@contextmanager
def _watched(memory: Memory) -> Iterator[None]:
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            memory.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What Binder builds: its packages, then `postBuild` in a copy of the repository, both beside
    an empty home."""
    folder = tmp_path_factory.mktemp("binder")
    environment = environments.make(folder / "environment", tools=(Path("/usr/bin"), Path("/bin")))
    environment.pip_install("-r", BINDER / "requirements.txt")
    assert environment.which("node") == str(environment.folder / "bin" / "node")
    copy = _copy(folder / "jovyan")
    # From where the tests' own packages come.
    index = os.environ.get("PIP_EXTRA_INDEX_URL", "")
    more = {"HOME": str(copy), "PIP_EXTRA_INDEX_URL": index}
    environment.run(copy / "binder" / "postBuild", cwd=copy, more=more)
    return environment


@pytest.fixture(scope="module")
def server(image: Environment) -> Iterator[Server]:
    """In the copy of the repository, as on Binder."""
    jovyan = image.folder.parent / "jovyan"
    home = image.folder.parent / "server"
    prepare(home)
    started = start_server(
        home,
        models={},
        app=LAB,
        config={**CONFIG, "ServerApp": {"root_dir": str(jovyan)}},
        python=image.python,
        env={
            "HOME": str(jovyan),
            "JUPYTER_DATA_DIR": str(jovyan / ".local" / "share" / "jupyter"),
            "JUPYTER_CONFIG_PATH": str(jovyan / ".jupyter"),
        },
    )
    yield started
    started.stop()


def _outputs(lab: Lab) -> list[dict[str, Any]]:
    return [output for cell in lab.cells_shown() for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_the_quickstart_runs_in_the_browser_and_fits(server: Server, page: Page) -> None:
    assert "jupyter-tinker" in server.lab_extensions()
    lab = Lab(page, server)
    memory = Memory(server.process.pid)

    def ended() -> bool:
        errors = [output for output in _outputs(lab) if output["output_type"] == "error"]
        assert not errors, errors
        return "held-out loss of the loaded run" in str(lab.cells_shown()[-1]["outputs"])

    with _watched(memory):
        lab.open_file("notebooks/quickstart.ipynb", len(QUICKSTART.cells))
        lab.run_all()
        until(ended, 1200)
    printed = "".join("".join(output.get("text", "")) for output in _outputs(lab))
    losses = re.search(r"held-out loss: (\S+) before, (\S+) after", printed)
    assert losses is not None, printed
    assert float(losses[2]) < float(losses[1]) / 2
    lab.panel.scroll_into_view_if_needed()  # what is out of sight is not drawn
    until(lambda: lab.drawn_steps()[-1:] == [25])
    expect(page.locator(".jp-Tinker-status")).to_contain_text("Tinker engine running")
    lab.page_screenshot("binder")
    print(f"peak of all processes: {memory.peak / 2**20:.0f} MiB", memory.at_peak)
    assert memory.peak < GRANTED


def test_binder_takes_the_steps_that_are_tested_here(tmp_path: Path) -> None:
    python = (BINDER / "runtime.txt").read_text().strip().removeprefix("python-")
    about = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(about["requires-python"]).contains(python)
    # Binder's own program refuses a Python that it has not; it says how it would build, and builds
    # nothing.
    told = subprocess.run(
        [sys.executable, "-m", "repo2docker", "--no-build", "--debug", PLATFORM, REPOSITORY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert f"Building conda environment for python={python}" in told.stderr
    steps = (
        'pip install --no-cache-dir -r "binder/requirements.txt"',
        " src/ ${REPO_DIR}/",
        "RUN ./binder/postBuild",
    )
    places = [told.stdout.find(step) for step in steps]
    assert -1 < places[0] < places[1] < places[2], told.stdout
