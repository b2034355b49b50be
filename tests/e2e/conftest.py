"""One real server on tiny models for the tests that only talk to it, and a factory for others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tinker

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


@contextmanager
def _starter(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, other_model_dir: Path
) -> Iterator[StartServer]:
    servers: list[Server] = []

    def start(home: Path | None = None, **options: Any) -> Server:
        home = home or tmp_path_factory.mktemp("server")
        options.setdefault("models", {"tiny": tiny_model_dir, "other": other_model_dir})
        servers.append(start_server(home, **options))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, other_model_dir: Path
) -> Iterator[StartServer]:
    """Starts servers, each with a home of its own unless one is given; they end with the file."""
    with _starter(tmp_path_factory, tiny_model_dir, other_model_dir) as start:
        yield start


@pytest.fixture(scope="session")
def a_server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, other_model_dir: Path
) -> Iterator[Server]:
    with _starter(tmp_path_factory, tiny_model_dir, other_model_dir) as start:
        yield start()


@pytest.fixture
def service(a_server: Server) -> Iterator[tinker.ServiceClient]:
    """A client whose session, with its sockets, ends with the test."""
    with tinker.ServiceClient(base_url=a_server.url, api_key=a_server.key) as client:
        yield client
