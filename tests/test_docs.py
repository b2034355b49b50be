"""The documentation: it is built without a warning, and what it says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_tinker.server.extension import TinkerExtension
from jupyter_tinker.server.handlers import HANDLERS
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    done = subprocess.run([*command, DOCS, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_setting_is_explained(site: Path) -> None:
    page = (site / "configuration.html").read_text()
    for cls in (TinkerExtension, *TinkerExtension.classes):
        for name, trait in cls.class_own_traits(config=True).items():
            assert trait.help, f"{cls.__name__}.{name} has no help"
            assert f"c.{cls.__name__}.{name}" in page


def test_what_is_tested_is_told(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "compatibility.html").read_text())
    for route in ("GET healthz", "POST forward_backward", "POST asample", "GET samplers/{sampler}"):
        assert route in page


def test_the_notebooks_can_be_read(site: Path) -> None:
    for notebook in (REPOSITORY / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{notebook.stem}.html").exists()
    told = (DOCS / "notebooks.md").read_text()
    assert all(path.stem in told for path in (REPOSITORY / "notebooks").glob("*.ipynb"))


def test_messages_that_are_explained_exist() -> None:
    sources = "".join(
        path.read_text() for path in (REPOSITORY / "jupyter_tinker").rglob("*.py")
    ) + "".join(path.read_text() for path in (REPOSITORY / "labextension" / "src").rglob("*.ts"))
    # A sentence may go over several lines of a source.
    said = re.sub(r'"\s*\n\s*f?"', "", sources)
    quoted = re.findall(r"\*\*`([^`]+)`", (DOCS / "troubleshooting.md").read_text())
    assert len(quoted) >= 5
    for sentence in quoted:
        assert sentence in said, f"nothing says {sentence!r}"


def test_every_route_is_documented() -> None:
    text = (DOCS / "api.md").read_text()
    told = {
        re.sub(r"\{\w+\}", "*", word.strip(".,"))
        for quoted in re.findall(r"`([^`]+)`", text)
        for word in quoted.split()
    }
    for pattern, *_ in HANDLERS:
        if "(?:/.*)?" in pattern:
            continue  # answers for what does not exist
        route = re.sub(r"\(\[\^/\]\+\)", "*", pattern.removesuffix("/?"))
        name = route.removeprefix("/tinker/").removeprefix("api/v1/")
        assert name in told, f"docs/api.md does not tell of {name}"
