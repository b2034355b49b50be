"""One real server on tiny models for the tests that only talk to it, and a factory for others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server, start_server

os.environ["TINKER_TELEMETRY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A model that is not the tiny one: a layer less."""
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "other"
    config = AutoConfig.from_pretrained(tiny_model_dir, num_hidden_layers=1)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def start(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, other_model_dir: Path
) -> Iterator[StartServer]:
    """Starts servers, each with a home of its own unless one is given; ends them all."""
    servers: list[Server] = []

    def _start(home: Path | None = None, **options: Any) -> Server:
        home = home or tmp_path_factory.mktemp("server")
        options.setdefault("models", {"tiny": tiny_model_dir, "other": other_model_dir})
        servers.append(start_server(home, **options))
        return servers[-1]

    yield _start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def a_server(start: StartServer) -> Server:
    return start()
