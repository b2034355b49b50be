"""What outlives the end of a session, the deletion of a source, and the death of a server."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.e2e.conftest import StartServer
from tests.servers import Server

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:RestClient.search_sessions is experimental"),
]
ADAM = types.AdamParams(learning_rate=1e-2)


def datum() -> types.Datum:
    tokens = list(range(40, 60))
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * 19},
    )


def loss(client: tinker.TrainingClient) -> float:
    return client.forward([datum()], "cross_entropy").result().metrics["loss:sum"]


def clients(server: Server, **options: str) -> tuple[tinker.ServiceClient, tinker.RestClient]:
    address = {"base_url": server.url, "api_key": server.key}
    return tinker.ServiceClient(**address, **options), tinker.RestClient(**address)


def leave_a_half_written_checkpoint(beside: Path) -> Path:
    """What an engine leaves that is killed while it writes."""
    code = (
        "import os, sys, pathlib; from jupyter_tinker.wire import staging;"
        "print(staging.fresh_folder(pathlib.Path(sys.argv[1])), flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(beside)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    folder = Path(killed.stdout.strip())
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    return folder


def test_runs_sessions_and_copies_outlive_the_server(start: StartServer) -> None:
    server = start()
    service, rest = clients(server, project_id="research")
    client = service.create_lora_training_client(base_model="tiny", rank=4).result()
    client.forward_backward([datum()], "cross_entropy").result()
    client.optim_step(ADAM).result()
    expected = loss(client)
    run = client.get_info().model_id
    source = client.save_state("best").result().path
    copy = service.copy_weights(source).result()
    elsewhere = rest.copy_weights(source, "archive", ttl_seconds=7200).result()
    rest.delete_checkpoint_from_tinker_path(source).result()
    service.close("success").result()

    folder = server.home / "data/tinker/checkpoints"
    other = folder / copy.removeprefix("tinker://").split("/")[0].replace(":", "_") / "weights"
    half = leave_a_half_written_checkpoint(other / "next")
    server.stop(signal.SIGKILL)
    server = start(server.home)
    service, rest = clients(server)

    assert rest.get_training_run(run).result().base_model == "tiny"
    assert rest.list_checkpoints(run).result().checkpoints == []
    named = rest.list_training_runs(project_id="research").result().training_runs
    copied = copy.removeprefix("tinker://").split("/")[0]
    assert {item.training_run_id for item in named} == {run, copied}
    assert rest.get_weights_info_by_tinker_path(copy).result().lora_rank == 4
    (kept,) = [
        item
        for item in rest.list_user_checkpoints().result().checkpoints
        if item.tinker_path == elsewhere
    ]
    assert kept.expires_at is not None
    wanted = types.SessionSearchRequest(
        project_ids=["research"],
        statuses=[types.ClientFinishedSessionStatusQuery(reasons=["success"])],
        display_name=None,
        session_id=run.partition(":")[0],
    )
    (found,) = rest.search_sessions(wanted).result().sessions
    assert found.session_id == run.partition(":")[0]
    # What the copy holds is the source's; what was half written is gone, and nothing else.
    loaded = service.create_training_client_from_state_with_optimizer(copy).result()
    assert loss(loaded) == expected
    assert not half.exists()
    assert [entry.name for entry in other.iterdir()] == ["best"]


def test_a_copy_cannot_be_trained(a_server: Server) -> None:
    service, rest = clients(a_server)
    client = service.create_lora_training_client(base_model="tiny", rank=4).result()
    sampler = client.save_weights_for_sampler("s").result().path
    copy = rest.copy_weights(sampler, "p").result()
    assert copy.endswith("/sampler_weights/s")
    run = copy.removeprefix("tinker://").split("/")[0]
    body = {"model_id": run, "seq_id": 1, "adam_params": {}}
    _, accepted = a_server.fetch("tinker/api/v1/optim_step", body)
    _, answer = a_server.fetch("tinker/api/v1/retrieve_future", accepted)
    assert answer["category"] == "server"
    assert "only holds a copy" in answer["error"]
    with pytest.raises(tinker.NotFoundError, match="nobody"):
        rest.copy_weights("tinker://nobody/weights/x", "p").result()
