"""Binder's steps, taken in an environment of their own, and the memory that its users get."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests import environments
from tests.environments import REPOSITORY, Environment
from tests.servers import start_server

BINDER = REPOSITORY / "binder"
# Bytes, see https://mybinder.readthedocs.io/en/latest/about/user-guidelines.html
GRANTED = 2 * 2**30

EXECUTE = """\
import nbclient, nbformat, sys
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=900).execute()
print("".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", [])))
"""


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
    """The most that a server, the kernel of an executed notebook and all their children used at
    once; what several share is counted once. What executes the notebook does not count: on Binder
    that is a browser elsewhere."""

    def __init__(self, server: int, execution: int) -> None:
        self.at_peak: dict[str, int] = {}  # the bytes of each, by its command
        self._processes = [psutil.Process(server), psutil.Process(execution)]
        self._execution = execution

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.at_peak.values())

    def look(self) -> None:
        sizes: dict[str, int] = {}
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                for each in [process, *process.children(recursive=True)]:
                    if each.pid == self._execution:
                        continue
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


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(1800)
def test_the_quickstart_is_ready_and_fits(image: Environment) -> None:
    jovyan = image.folder.parent / "jovyan"
    server = start_server(
        image.folder.parent / "server",
        models={},
        app=("-m", "jupyterlab"),
        python=image.python,
        env={
            "HOME": str(jovyan),
            "JUPYTER_DATA_DIR": str(jovyan / ".local" / "share" / "jupyter"),
            "JUPYTER_CONFIG_PATH": str(jovyan / ".jupyter"),
        },
    )
    try:
        assert "jupyter-tinker" in server.lab_extensions()
        execution = subprocess.Popen(
            [image.python, "-c", EXECUTE, jovyan / "notebooks" / "quickstart.ipynb"],
            env={**server.env, "TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        memory = Memory(server.process.pid, execution.pid)
        with _watched(memory):
            printed, _ = execution.communicate(timeout=1200)
        assert execution.returncode == 0, printed
        losses = re.search(r"held-out loss: (\S+) before, (\S+) after", printed)
        assert losses is not None, printed
        assert float(losses[2]) < float(losses[1]) / 2
        print(f"peak of all processes: {memory.peak / 2**20:.0f} MiB", memory.at_peak)
        assert memory.peak < GRANTED
    finally:
        server.stop()
