"""What is released: an sdist and a wheel that work where there is no Node.js."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import jupyter_tinker
from tests import environments
from tests.environments import REPOSITORY, Environment
from tests.raw import RawRun, some_data
from tests.servers import start_server

EXTENSION = "share/jupyter/labextensions/jupyter-tinker"


def test_the_front_end_has_the_package_s_version() -> None:
    package = json.loads((REPOSITORY / "labextension" / "package.json").read_text())
    assert package["version"] == jupyter_tinker.__version__


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    here = Environment(Path(sys.prefix))
    assert here.which("node") is None
    here.run(here.python, "-m", "build", "--outdir", folder, REPOSITORY)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    assert wheel.name == f"jupyter_tinker-{jupyter_tinker.__version__}-py3-none-any.whl"
    return wheel


@pytest.mark.slow
def test_what_indexes_and_installers_ask_of_them(distributions: Path, wheel: Path) -> None:
    here = Environment(Path(sys.prefix))
    files = sorted(distributions.iterdir())
    assert len(files) == 2
    here.run(here.python, "-m", "twine", "check", "--strict", *files)
    here.run(here.which("check-wheel-contents"), wheel, cwd=REPOSITORY)


@pytest.mark.slow
def test_the_sdist_holds_all_but_what_is_the_repository_s_own(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    missing = {name for name in listed.stdout.splitlines() if name not in held}
    own = (".ci/", ".github/", ".pre-commit-config.yaml")
    assert {name for name in missing if not name.startswith(own)} == set()


@pytest.mark.slow
def test_the_wheel_holds_what_it_must_and_nothing_twice(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    data = f"jupyter_tinker-{jupyter_tinker.__version__}.data/data"
    assert f"{data}/etc/jupyter/jupyter_server_config.d/jupyter_tinker.json" in names
    for file in ("install.json", "package.json", "static/style.js"):
        assert names.count(f"{data}/{EXTENSION}/{file}") == 1
    assert [name for name in names if "remoteEntry" in name] == [
        name
        for name in names
        if re.match(rf"{data}/{EXTENSION}/static/remoteEntry\.\w+\.js$", name)
    ]
    assert "jupyter_tinker/notebook/static/panel.js" in names
    outside = [n for n in names if not n.startswith(("jupyter_tinker/", "jupyter_tinker-"))]
    assert outside == []


@pytest.mark.slow
@pytest.mark.e2e
def test_the_wheel_works_in_an_environment_of_its_own(
    wheel: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    environment = environments.make(tmp_path / "environment")
    assert environment.which("node") is None
    environment.pip_install(f"{wheel}[lab]")
    environment.run(environment.python, "-m", "pip", "check")
    listed = environment.run(environment.which("jupyter"), "labextension", "list")
    assert re.search(r"jupyter-tinker v\S+ .*enabled.*OK.* \(python, jupyter-tinker\)", listed), (
        listed
    )
    environment.run(environment.python, "-c", "from jupyter_tinker import Panel")
    server = start_server(
        tmp_path / "home",
        models={"tiny": tiny_model_dir},
        app=("-m", "jupyterlab"),
        python=environment.python,
    )
    try:
        run = RawRun(server)
        first = run.loss(run.forward_backward(1, some_data(0)))
        run.result(run.optim_step(2))
        assert run.loss(run.forward_backward(3, some_data(0))) < first
        entry = server.lab_extensions()["jupyter-tinker"]
        status, script = server.fetch(f"lab/extensions/jupyter-tinker/{entry}")
        assert (status, b"jupyter-tinker" in script) == (200, True)
        program = Path(f"/proc/{server.engine_pid()}/cmdline").read_bytes().split(b"\0")[0].decode()
        assert program.startswith(str(environment.folder)), "not of the tests' environment"
    finally:
        server.stop()
