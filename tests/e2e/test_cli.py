"""Every command of the SDK's command line, as a person types them: the `tinker` program in a shell
that has a URL, a key and a home, against a real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyrage
import pytest
import tinker
import torch
from tinker import types

from tests.engine.reference import load_peft
from tests.servers import Server

pytestmark = pytest.mark.e2e
PROGRAM = Path(sys.executable).parent / "tinker"
NOBODY = "00000000-0000-0000-0000-000000000000:train:0"

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture
def cli(a_server: Server, tmp_path: Path) -> Run:
    """Runs `tinker ...`; fails unless it ends with `code`."""

    def _run(*arguments: str, code: int = 0, stdin: str = "", **env: str) -> Done:
        given = {"TINKER_BASE_URL": a_server.url, "TINKER_API_KEY": a_server.key, **env}
        own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLUMNS": "300"}
        done = subprocess.run(
            [PROGRAM, *arguments],
            env=own | {name: value for name, value in given.items() if value},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,  # no terminal to ask for a key on
        )
        # Now and then the program aborts when it has said all it has to say, without a Python frame
        # on its stack; why is not known. What it said is judged all the same.
        assert done.returncode in (code, -signal.SIGABRT), done.stderr + done.stdout
        assert "Traceback" not in done.stderr + done.stdout
        failed = re.search("^Error: ", done.stderr, re.MULTILINE) is not None
        assert failed == (code == 1), done.stderr + done.stdout
        return done

    return _run


def answer(done: Done) -> Any:
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Trained:
    """A run with a checkpoint of each kind, and what it makes of a few tokens."""

    session: str
    run: str
    saved: str
    sampler: str
    tokens: list[int]
    logprobs: np.ndarray


def train(server: Server) -> tuple[tinker.ServiceClient, tinker.TrainingClient, types.Datum]:
    service = tinker.ServiceClient(base_url=server.url, api_key=server.key)
    client = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
    tokens = np.random.default_rng(0).integers(5, 384, 25)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_numpy(tokens[1:]),
            "weights": types.TensorData.from_numpy(np.ones(24, np.float32)),
        },
    )
    for _ in range(2):
        client.forward_backward([datum], "cross_entropy").result()
        client.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    return service, client, datum


@pytest.fixture(scope="module")
def trained(a_server: Server) -> Trained:
    service, client, datum = train(a_server)
    saved = client.save_state("final", user_metadata={"epoch": "2"}).result().path
    sampler = client.save_weights_for_sampler("final").result().path
    output = client.forward([datum], "cross_entropy").result().loss_fn_outputs[0]
    run = client.get_info().model_id
    service.close("success").result()
    tokens = [*datum.model_input.to_ints(), int(datum.loss_fn_inputs["target_tokens"].data[-1])]
    session = run.partition(":")[0]
    return Trained(session, run, saved, sampler, tokens, output["logprobs"].to_numpy())


@pytest.fixture
def path(a_server: Server) -> str:
    """A checkpoint to do things to."""
    _, client, _ = train(a_server)
    saved: str = client.save_state("x").result().path
    return saved


# Who is it?


def test_version(cli: Run) -> None:
    assert cli("version").stdout == f"tinker {tinker.__version__}\n"


def test_login_and_logout(cli: Run, a_server: Server, tmp_path: Path) -> None:
    key = a_server.command("key", "create", "cli").stdout.split()[-1]
    assert key.startswith("tml-key-")
    told = cli("auth", "login", stdin=f"{key}\n", TINKER_API_KEY="")
    assert "Logged in as tinker-key:cli (Jupyter server on " in told.stdout
    kept = json.loads((tmp_path / ".tinker" / "credentials.json").read_text())
    assert kept["keys"][kept["default"]]["name"] == "cli"
    # The stored key is used where none is in the environment.
    assert "accessible: yes" in cli("auth", "status", TINKER_API_KEY="").stdout
    assert "Already logged in" in cli("auth", "login", code=1, TINKER_API_KEY="").stderr
    told = cli("auth", "logout", TINKER_API_KEY="")
    assert "Removed credential 'cli'" in told.stdout
    told = cli("auth", "status", code=1, TINKER_API_KEY="")
    assert "Credentials available: no" in told.stdout
    assert "No default credential" in cli("auth", "logout", code=1, TINKER_API_KEY="").stderr


def test_a_key_that_was_made_for_the_tool_goes_with_logout(
    cli: Run, a_server: Server, tmp_path: Path
) -> None:
    key = a_server.command("key", "create", "generated").stdout.split()[-1]
    cli("auth", "login", stdin=f"{key}\n", TINKER_API_KEY="")
    file = tmp_path / ".tinker" / "credentials.json"
    file.write_text(file.read_text().replace('"manual"', '"generated"'))
    assert "deleted its API key on the server" in cli("auth", "logout", TINKER_API_KEY="").stdout
    told = cli("auth", "status", code=1, TINKER_API_KEY=key)
    assert "accessible: no" in told.stdout
    assert "Authentication failed" in told.stderr


def test_login_with_a_wrong_key_and_with_jupyters_token(cli: Run, a_server: Server) -> None:
    told = cli("auth", "login", code=1, stdin="tml-wrong\n", TINKER_API_KEY="")
    assert "Could not validate the API key" in told.stderr
    assert "jupyter tinker key create" in told.stderr
    told = cli("auth", "login", stdin=f"{a_server.key}\n", TINKER_API_KEY="")
    assert "Logged in as jupyter (" in told.stdout


def test_status(cli: Run) -> None:
    told = cli("auth", "status").stdout
    assert told == "Credentials available: yes\nTinker accessible: yes\n"
    told = cli("auth", "status", code=1, TINKER_API_KEY="tml-wrong")
    assert "Authentication failed" in told.stderr


def test_whoami_says_why_it_cannot_tell(cli: Run) -> None:
    assert "whoami requires JWT auth" in cli("auth", "whoami", code=1).stderr


# What is there?


def test_model_list(cli: Run) -> None:
    models = answer(cli("-f", "json", "model", "list"))["models"]
    assert {"tiny", "other"} <= {model["model_name"] for model in models}
    table = cli("model", "list", "TIN").stdout
    assert "tiny" in table
    assert "other" not in table


def test_run_list_and_info(cli: Run, trained: Trained) -> None:
    listed = answer(cli("-f", "json", "run", "list", "--limit", "0"))["runs"]
    (mine,) = [run for run in listed if run["training_run_id"] == trained.run]
    assert (mine["base_model"], mine["lora_rank"]) == ("tiny", 4)
    assert trained.run in cli("run", "list", "--limit", "0", "-c", "id,model").stdout
    info = answer(cli("-f", "json", "run", "info", trained.run))
    assert info["last_checkpoint"]["tinker_path"] == trained.saved
    assert info["last_sampler_checkpoint"]["tinker_path"] == trained.sampler
    assert trained.run in cli("run", "info", trained.run).stdout
    told = cli("run", "info", NOBODY, code=1)
    assert "Resource not found" in told.stderr
    assert NOBODY in told.stderr


def test_checkpoint_list_and_info(cli: Run, trained: Trained) -> None:
    every = answer(cli("-f", "json", "checkpoint", "list", "--limit", "0"))["checkpoints"]
    assert {trained.saved, trained.sampler} <= {item["tinker_path"] for item in every}
    of_run = answer(cli("-f", "json", "checkpoint", "list", "--run-id", trained.run))
    assert [item["checkpoint_id"] for item in of_run["checkpoints"]] == [
        "sampler_weights/final",
        "weights/final",
    ]
    assert trained.saved in cli("checkpoint", "list", "--run-id", trained.run).stdout
    info = answer(cli("-f", "json", "checkpoint", "info", trained.saved))
    assert (info["checkpoint_type"], info["lora_rank"], info["public"]) == ("training", 4, False)
    assert info["user_metadata"] == {"epoch": "2"}
    assert "Yes (Rank 4)" in cli("checkpoint", "info", trained.saved).stdout
    assert "not found" in cli("checkpoint", "info", trained.saved + "x", code=1).stderr
    assert "Invalid checkpoint path" in cli("checkpoint", "info", "x", code=1).stderr
    assert "not found" in cli("checkpoint", "list", "--run-id", NOBODY, code=1).stderr


# What may be done with it?


def test_publishing(cli: Run, path: str) -> None:
    for command, public in [("publish", True), ("publish", True), ("unpublish", False)]:
        cli("checkpoint", command, path)
        assert answer(cli("-f", "json", "checkpoint", "info", path))["public"] is public
    assert "Resource not found" in cli("checkpoint", "publish", path + "x", code=1).stderr


def test_set_ttl(cli: Run, path: str) -> None:
    cli("checkpoint", "set-ttl", path, "--ttl", "7200")
    assert answer(cli("-f", "json", "checkpoint", "info", path))["expires_at"] is not None
    assert "in 1 hour" in cli("checkpoint", "info", path).stdout
    cli("checkpoint", "set-ttl", path, "--remove")
    assert answer(cli("-f", "json", "checkpoint", "info", path))["expires_at"] is None
    told = cli("checkpoint", "set-ttl", path, "--ttl", "60", code=1)
    assert "Invalid request" in told.stderr
    assert "ttl_seconds" in told.stderr
    assert "not found" in cli("checkpoint", "set-ttl", path + "x", "--remove", code=1).stderr


def test_delete(cli: Run, a_server: Server, path: str) -> None:
    assert "cancelled" in cli("checkpoint", "delete", path, stdin="n\n").stdout
    answered = answer(cli("-f", "json", "checkpoint", "delete", "-y", path, path + "x"))
    assert answered["deleted_count"] == 1
    assert [item["tinker_path"] for item in answered["failed"]] == [path + "x"]
    _, client, _ = train(a_server)
    for name in ("a", "b"):
        client.save_state(name).result()
    kept = client.save_weights_for_sampler("c").result().path
    run = client.get_info().model_id
    told = cli("checkpoint", "delete", "-y", "--run-id", run, "--type", "weights")
    assert "Deleted 2 checkpoint(s)" in told.stdout
    left = answer(cli("-f", "json", "checkpoint", "list", "--run-id", run))["checkpoints"]
    assert [item["tinker_path"] for item in left] == [kept]


def test_a_download_is_what_peft_loads_with_the_runs_own_numbers(
    cli: Run, trained: Trained, tiny_model_dir: Path, tmp_path: Path, a_server: Server
) -> None:
    told = answer(cli("-f", "json", "checkpoint", "download", trained.saved, "-o", "out"))
    folder = tmp_path / told["destination"]
    assert folder.parent == tmp_path / "out"
    assert told["file_size_bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    model = load_peft(tiny_model_dir, folder).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([trained.tokens[:-1]])).logits[0]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(trained.tokens[1:])[:, None])
    np.testing.assert_allclose(trained.logprobs, expected[:, 0].numpy(), atol=1e-4)
    # The export that it went through is gone.
    every = answer(cli("-f", "json", "checkpoint", "list", "--limit", "0"))["checkpoints"]
    assert [item for item in every if item["checkpoint_type"] == "external"] == []
    assert list((a_server.home / "data/tinker/checkpoints").glob("*/external_weights/*")) == []

    again = ("checkpoint", "download", trained.saved, "-o", "out")
    assert "already exists" in cli(*again, code=1).stderr
    assert "Downloaded to" in cli(*again, "--force").stdout
    told = cli("checkpoint", "download", trained.sampler, code=1)
    assert "Sampler checkpoints cannot be downloaded" in told.stderr
    told = cli("checkpoint", "download", trained.saved + "x", "-o", "no", code=1)
    assert "not found" in told.stderr
    assert list((tmp_path / "no").iterdir()) == []


def test_a_download_of_encrypted_weights(cli: Run, a_server: Server, tmp_path: Path) -> None:
    _, client, _ = train(a_server)
    identity = pyrage.x25519.Identity.generate()
    with pytest.raises(tinker.RequestFailedError, match="age1nonsense"):
        client.save_weights_external("bad", age_encryption_recipients=["age1nonsense"]).result()
    path = (
        client.save_weights_external(
            "secret", age_encryption_recipients=[str(identity.to_public())]
        )
        .result()
        .path
    )
    with pytest.raises(tinker.RequestFailedError, match="already"):
        client.save_weights_external("secret").result()
    (folder,) = (a_server.home / "data/tinker/checkpoints").glob("*/external_weights/secret")
    assert {file.suffix for file in folder.iterdir()} == {".age"}
    told = answer(cli("-f", "json", "checkpoint", "download", path))
    files = {file.name: file.read_bytes() for file in (tmp_path / told["destination"]).iterdir()}
    config = json.loads(pyrage.decrypt(files["adapter_config.json.age"], [identity]))
    assert config["r"] == 4
    cli("checkpoint", "delete", "-y", path)


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as it takes to be asked for a repository, and to refuse."""

    def do_GET(self) -> None:
        known = self.path == "/api/whoami-v2"
        self._answer(200 if known else 404, {"type": "user", "name": "ada"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(403, {"error": "this hub takes nothing"})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def a_hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_push_hf_as_far_as_the_hub_lets_it(
    cli: Run, a_server: Server, trained: Trained, a_hub: str
) -> None:
    push = ("checkpoint", "push-hf", trained.saved, "--repo", "ada/adapter")
    told = cli(*push, code=1, HF_ENDPOINT=a_hub)
    assert "Not logged in" in told.stderr

    def downloads() -> int:
        entries = a_server.fetch("tinker/api/v1/audit")[1]["entries"]
        return len([entry for entry in entries if entry["event"] == "checkpoint_read"])

    before = downloads()
    told = cli(*push, code=1, HF_ENDPOINT=a_hub, HF_TOKEN="hf_x")
    assert "403" in told.stderr
    assert downloads() == before + 1


# What happened, and what does it cost?


def test_export_trace(cli: Run, trained: Trained, tmp_path: Path) -> None:
    told = answer(cli("-f", "json", "session", "export-trace", trained.session))
    file = Path(told["destination"])
    assert file == tmp_path / f"{trained.session}.pftrace"
    assert told["file_size_bytes"] == file.stat().st_size
    events = json.loads(file.read_text())["traceEvents"]
    kinds = [event["name"] for event in events if event["ph"] == "b"]
    assert kinds.count("optim_step") == 2
    assert kinds.count("forward_backward") == 3
    assert "save_weights" in kinds
    spans = {event["id"] for event in events if event["ph"] == "b"}
    assert {event["id"] for event in events if event["ph"] == "e"} == spans
    losses = [e["args"]["loss_mean"] for e in events if e["name"] == "loss_mean"]
    assert losses[1] < losses[0]
    assert "Saved to" in cli("session", "export-trace", trained.session, "-o", "t.json").stdout
    url = cli("session", "export-trace", trained.session, "--url-only").stdout
    assert url.startswith("http://127.0.0.1")
    assert "not found" in cli("session", "export-trace", "nobody", code=1).stderr


def test_billing(cli: Run, trained: Trained) -> None:
    window = ("2026-07-13T00:00:00Z", "2026-07-14T00:00:00Z")
    assert answer(cli("-f", "json", "billing", "usage", *window))["data"] == []
    assert cli("billing", "usage", *window).stdout.strip() == ""  # a table without rows
    assert "Invalid request" in cli("billing", "usage", *reversed(window), code=1).stderr
    stored = answer(cli("-f", "json", "billing", "checkpoint-storage"))
    (row,) = stored["data"]
    assert row["project_id"] == "default"
    assert row["checkpoint_count"] >= 2
    assert row["size_bytes"] > 1000
    assert row["estimated_monthly_cost_usd"] == 0
    assert "default" in cli("billing", "checkpoint-storage").stdout
    other = answer(cli("-f", "json", "billing", "checkpoint-storage", "--project-id", "other"))
    assert other["data"] == []
