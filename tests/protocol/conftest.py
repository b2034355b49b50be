"""A server that waits for little, and a run with something of everything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.raw import RawRun, some_data
from tests.servers import Server, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Any:
    traits = {"seq_gap_seconds": 0.5, "hold_seconds": 5.0}
    server = start_server(
        tmp_path_factory.mktemp("server"),
        models={"tiny": tiny_model_dir},
        config={"TinkerExtension": traits},
    )
    yield server
    server.stop()


@dataclass(frozen=True)
class Everything:
    """A trained run, a checkpoint of each kind, a sampler, and what may be ended: another session
    and a checkpoint named "spare"."""

    run: RawRun
    sampler: str
    spare_session: str

    @property
    def paths(self) -> dict[str, str]:
        kinds = ("weights", "sampler_weights", "external_weights")
        return {kind: f"tinker://{self.run.id}/{kind}/here" for kind in kinds}


@pytest.fixture(scope="module")
def everything(server: Server) -> Everything:
    run = RawRun(server)
    run.loss(run.forward_backward(1, some_data(0)))
    run.result(run.optim_step(2))
    routes = ("save_weights", "save_weights_for_sampler", "save_weights_external")
    for number, route in enumerate(routes, 3):
        assert "error" not in run.result(run.submit(route, number, path="here"))
    assert "error" not in run.result(run.submit("save_weights", 6, path="spare"))
    spare = run.post("create_session", {"tags": [], "sdk_version": "raw"})[1]["session_id"]
    body = {"session_id": run.session_id, "sampling_session_seq_id": 0, "base_model": "tiny"}
    status, answer = run.post("create_sampling_session", body)
    assert status == 200, answer
    return Everything(run, answer["sampling_session_id"], spare)
