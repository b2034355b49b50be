"""The documentation: it is built without a warning, and what it says is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tornado.web import RequestHandler

from jupyter_tinker.server.extension import TinkerExtension
from jupyter_tinker.server.handlers import HANDLERS
from tests.conftest import REPOSITORY
from tests.protocol.test_routes import ELSEWHERE, FUTURES, ROUTES

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


def test_every_route_of_the_protocol_is_asked_in_the_tests() -> None:
    asked = [(line.partition("?")[0], None) for line, *_ in ROUTES.values()]
    asked += [(f"POST {route}", None) for route in FUTURES]
    asked += [(line.replace("*", "x"), file) for line, file in ELSEWHERE.items()]
    for pattern, handler, *_ in HANDLERS:
        if not pattern.startswith("/tinker/api/v1/"):
            continue
        route = re.compile(pattern.removeprefix("/tinker/api/v1/"))
        for method in _verbs(handler):
            files = [
                file
                for line, file in asked
                if line.startswith(f"{method} ") and route.fullmatch(line.partition(" ")[2])
            ]
            assert files, f"tests/protocol/test_routes.py does not ask {method} {pattern}"
    for line, file in ELSEWHERE.items():
        assert (REPOSITORY / file).read_text().count(_word(line)), f"{file} does not ask {line}"


def _verbs(handler: type) -> list[str]:
    """What the handler itself answers; tornado's own refuse."""
    verbs = ("get", "post", "put", "delete", "patch")
    return [
        verb.upper()
        for verb in verbs
        if getattr(handler, verb) is not getattr(RequestHandler, verb)
    ]


def _word(line: str) -> str:
    """The last word of a route that is the same for all."""
    return [word for word in line.partition(" ")[2].split("/") if word != "*"][-1]


def test_every_commit_passes_the_linters() -> None:
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    make = (REPOSITORY / "Makefile").read_text()
    rules = re.search(r"^lint: .*\n((?:\t.*\n)+)", make, re.M)
    assert rules is not None
    commands = [line.split("/")[-1].split("$(JLPM)")[-1] for line in rules[1].splitlines()]
    assert commands == ["ruff check .", "ruff format --check .", "mypy", " check"]
    for linter in ("ruff check", "ruff format", "/mypy", "jlpm check"):
        assert linter in hooks


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
