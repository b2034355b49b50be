"""Copies of checkpoints."""

from __future__ import annotations

import os
from typing import Any

import pytest

from jupyter_tinker.server.checkpoints import CheckpointPath
from jupyter_tinker.server.service import TinkerService
from tests.server.stored import Ask, add_checkpoint, add_run, copy, new_session

pytest_plugins = ["pytest_jupyter.jupyter_server"]


@pytest.mark.parametrize("kind", ["weights", "sampler_weights"])
async def test_a_copy_shares_the_files_and_outlives_its_source(
    ask: Ask, service: TinkerService, kind: str
) -> None:
    run = add_run(service, await new_session(ask))
    source = await add_checkpoint(service, run, "best", kind)
    place = {"destination_project_id": "archive", "ttl_seconds": 7200}
    copied = (await copy(ask, source, **place))["tinker_path"]
    assert (await copy(ask, source, **place))["tinker_path"] == copied
    assert (await copy(ask, source, key="another", **place))["tinker_path"] != copied
    run_id, _, name = copied.removeprefix("tinker://").split("/")
    target = CheckpointPath(run_id, source.kind, name)
    assert name == "best"
    files = [service.checkpoints.folder(p) / "adapter_config.json" for p in (source, target)]
    assert len({file.stat().st_ino for file in files}) == 1

    await ask("DELETE", "training_runs", run, "checkpoints", kind, "best")
    assert not files[0].exists()
    assert files[1].read_text() == "{}"
    assert (await copy(ask, source, **place))["tinker_path"] == copied  # a late retry
    info = await ask("POST", "weights_info", tinker_path=copied)
    assert (info["lora_rank"], info["train_attn"]) == (4, False)
    (listed,) = (await ask("GET", "training_runs", run_id, "checkpoints"))["checkpoints"]
    assert listed["tinker_path"] == copied
    assert listed["expires_at"] is not None
    runs = await ask("GET", "training_runs", query={"project_id": "archive"})
    assert run_id in [item["training_run_id"] for item in runs["training_runs"]]


async def test_a_copy_in_a_session_takes_the_place_of_a_run(
    ask: Ask, service: TinkerService
) -> None:
    run = add_run(service, await new_session(ask))
    source = await add_checkpoint(service, run, "best")
    other = await add_checkpoint(service, run, "other")
    session = await new_session(ask)
    place = {"session_id": session, "model_seq_id": 0}
    copied = (await copy(ask, source, **place))["tinker_path"]
    assert copied == f"tinker://{session}:train:0/weights/best"
    assert (await copy(ask, source, key="another", **place))["tinker_path"] == copied
    assert (await ask("GET", "sessions", session))["training_run_ids"] == [f"{session}:train:0"]
    # Neither a second copy nor a run to train may take its place, and it cannot be trained.
    code, sentence = await copy(ask, other, **place)
    assert code == 400
    assert "another training run" in sentence
    code, sentence = await ask("POST", "create_model", base_model="tiny", **place)
    assert code == 400
    assert "only holds a copy" in sentence
    answer = await ask("POST", "optim_step", model_id=f"{session}:train:0", seq_id=1)
    result = await ask("POST", "retrieve_future", request_id=answer["request_id"])
    assert "only holds a copy" in result["error"]
    assert (await ask("POST", "get_info", model_id=f"{session}:train:0"))["lora_rank"] == 4


async def test_a_disk_without_hard_links_copies(
    ask: Ask, service: TinkerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(service, await new_session(ask))
    source = await add_checkpoint(service, run, "best")

    def no_links(*_: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_links)
    copied = (await copy(ask, source, destination_project_id="p"))["tinker_path"]
    run_id = copied.removeprefix("tinker://").split("/")[0]
    folder = service.checkpoints.folder(CheckpointPath(run_id, "weights", "best"))
    assert (folder / "adapter_model.safetensors").read_bytes() == b"best" * 100
    assert [entry.name for entry in folder.parent.iterdir()] == ["best"]


@pytest.mark.parametrize(
    ("path", "place", "code", "words"),
    [
        ("nonsense", {"destination_project_id": "p"}, 400, "tinker://RUN"),
        ("tinker://a/weights/b", {"destination_project_id": "p"}, 404, "tinker://a"),
        ("tinker://a/weights/b", {}, 400, "destination_project_id"),
        ("tinker://a/weights/b", {"session_id": "x", "model_seq_id": 0}, 404, "session"),
        ("tinker://a/weights/b", {"destination_project_id": "p", "ttl_seconds": 1}, 400, "ttl"),
    ],
)
async def test_copies_that_cannot_be(
    ask: Ask, path: str, place: dict[str, Any], code: int, words: str
) -> None:
    answer = await copy(ask, path, **place)
    assert answer[0] == code
    assert words in answer[1]
    assert (await ask("GET", "training_runs"))["training_runs"] == []


async def test_a_session_without_a_number_is_no_place(ask: Ask) -> None:
    code, sentence = await copy(ask, "tinker://a/weights/b", session_id=await new_session(ask))
    assert code == 400
    assert "model_seq_id" in sentence
