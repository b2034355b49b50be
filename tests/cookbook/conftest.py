"""Runs recipes of the unmodified tinker-cookbook against a real server."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cookbook.workdir import MODEL, TEACHER, make_workdir
from tests.servers import Server, start_server

PYTHON = Path(__file__).parents[2] / ".venv-cookbook" / "bin" / "python"


@dataclass
class Recipe:
    """A recipe in a process of its own."""

    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float) -> int:
        return self.process.wait(seconds)

    def interrupt(self) -> int:
        """Ctrl-C, as a person would: again, if nothing comes of it. Python drops an interrupt that
        arrives in the midst of a destructor."""
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(1)
        return self.process.wait(60)


StartRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    return make_workdir(tmp_path_factory.mktemp("cookbook"), smollm2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Server]:
    """A server that serves SmolLM2 to whoever asks for one of the cookbook's models."""
    models = {MODEL: smollm2, TEACHER: smollm2}
    server = start_server(tmp_path_factory.mktemp("server"), models=models)
    yield server
    server.stop()


@pytest.fixture
def start_recipe(server: Server, workdir: Path, tmp_path: Path) -> Iterator[StartRecipe]:
    """Starts `python -m tinker_cookbook.recipes.NAME KEY=VALUE ...`."""
    if not PYTHON.exists():
        pytest.fail("The cookbook's environment is not there; `make test` makes it.")
    # Nothing of this process's own settings: the recipe gets a URL and a key, and no network.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    env |= {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key}
    env |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    env |= {"HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    recipes: list[Recipe] = []

    def start(name: str, **options: object) -> Recipe:
        arguments = [f"{key}={value}" for key, value in options.items()]
        command = [str(PYTHON), "-m", f"tinker_cookbook.recipes.{name}"]
        log_file = tmp_path / f"recipe-{len(recipes)}.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                cwd=workdir,
                env=env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        recipes.append(Recipe(process, log_file))
        return recipes[-1]

    yield start
    for recipe in recipes:
        recipe.process.kill()
        recipe.process.wait()
