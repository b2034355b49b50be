"""The reference: what the schedule gives on a server that nobody disturbs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server, start_server

from .client import Client, Recording
from .faults import Faults
from .place import Place
from .schedule import Turn, turns

os.environ["TINKER_TELEMETRY"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

CONFIG: dict[str, Any] = {
    # As often as can be: the model is so small that hardly a step would be worth a snapshot.
    "TinkerExtension": {"snapshot_overhead": 10.0},
    # Several microbatches in a batch, and the same sums on machines that are busy with tests.
    "EngineSupervisor": {"microbatch_tokens": 64, "num_threads": 1},
}
TURNS = turns(64)

StartPlace = Callable[..., Place]


@contextmanager
def _starter(folders: pytest.TempPathFactory, model: Path) -> Iterator[StartPlace]:
    servers: list[Server] = []

    def _start(
        config: dict[str, dict[str, Any]] | None = None,
        prepare: Callable[[Path], None] | None = None,
    ) -> Place:
        home = folders.mktemp("server")
        faults = Faults(home / "faults")
        merged = dict(CONFIG)
        for section, traits in (config or {}).items():
            merged[section] = {**merged.get(section, {}), **traits}
        if prepare is not None:
            (home / "data/tinker").mkdir(parents=True)
            prepare(home / "data/tinker")

        def run(port: int | None = None) -> Server:
            env, models = faults.env, {"tiny": model}
            server = start_server(home, models=models, port=port, config=merged, env=env)
            servers.append(server)
            return server

        first = run()
        return Place(first, faults, lambda: run(first.port))

    yield _start
    for server in servers:
        server.stop()


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[StartPlace]:
    """Starts servers that can be broken, in homes of their own; ends them behind the test.

    `prepare` is called with the state directory before the first start.
    """
    with _starter(tmp_path_factory, tiny_model_dir) as start:
        yield start


@dataclass
class Reference:
    """A recording, and the server that it was made on, of which only the files are left."""

    server: Server
    turns: list[Turn]
    recording: Recording


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Reference:
    with _starter(tmp_path_factory, tiny_model_dir) as start:
        server = start().server
        return Reference(server, TURNS, Client(server).go(TURNS))
