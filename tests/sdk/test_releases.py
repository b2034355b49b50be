"""The core story with earlier releases of the SDK, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinker

from tests.conftest import REPOSITORY
from tests.engine.reference import load_peft
from tests.servers import Server, start_server

STORY = Path(__file__).with_name("story.py")
OLD = ("0.25.0", "0.30.4")
SAME = (
    "models",
    "rank",
    "losses",
    "logprobs",
    "loaded",
    "resumed",
    "went on",
    "back",
    "run",
    "sampled",
)
pytestmark = [pytest.mark.e2e, pytest.mark.sdk_matrix]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Any:
    server = start_server(tmp_path_factory.mktemp("server"), models={"tiny": tiny_model_dir})
    yield server
    server.stop()


def run(server: Server, home: Path, *command: str | Path) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env |= {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key}
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def program(release: str, name: str) -> Path:
    found = REPOSITORY / f".venv-sdk-{release}" / "bin" / name
    if not found.exists():
        pytest.fail(f"The environment of SDK {release} is not there; `make test` makes it.")
    return found


@pytest.fixture(scope="module")
def present(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The story as the present release has it."""
    told = json.loads(run(server, tmp_path_factory.mktemp("home"), sys.executable, STORY))
    assert told["version"] == tinker.__version__
    assert told["losses"][2] < 0.9 * told["losses"][0]
    assert told["resumed"] == told["went on"]
    assert told["loaded"] == told["back"] == told["logprobs"]
    assert told["sampled now"] == told["sampled"]
    assert "no_such_loss" in told["refusal"]
    return dict(told)


@pytest.mark.parametrize("release", OLD)
def test_an_earlier_release_sees_the_same_numbers(
    server: Server, present: dict[str, Any], release: str, tmp_path: Path
) -> None:
    told = json.loads(run(server, tmp_path, program(release, "python"), STORY))
    assert told["version"] == release
    assert f"SDK {release}" in server.log
    assert sorted(told["listed"]) == sorted([told["path"], told["sampler"]])
    assert "no_such_loss" in told["refusal"]
    assert {key: told[key] for key in SAME} == {key: present[key] for key in SAME}


@pytest.mark.parametrize("release", OLD)
def test_an_earlier_release_downloads_an_archive_that_peft_loads(
    server: Server, release: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    told = json.loads(run(server, tmp_path, program(release, "python"), STORY))
    run(server, tmp_path, program(release, "tinker"), "checkpoint", "download", told["path"])
    (config,) = tmp_path.rglob("adapter_config.json")
    names = {file.name for file in config.parent.iterdir()}
    assert {"adapter_model.safetensors", "checkpoint_complete"} <= names
    assert "optimizer.safetensors" not in names
    load_peft(tiny_model_dir, config.parent)
