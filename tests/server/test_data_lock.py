"""A state directory that cannot be used is told, and used as soon as it can be."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server.data_lock import DataLock
from jupyter_tinker.server.service import TinkerService
from tests.server.stored import Ask, Fetch

pytest_plugins = ["pytest_jupyter.jupyter_server"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    lock = DataLock(tmp_path / "state")
    assert not lock.take("here")
    assert str(tmp_path / "state") in lock.refusal()
    assert "TinkerExtension.state_dir" in lock.refusal()
    (tmp_path / "state").unlink()
    assert lock.take("here")
    lock.release()


def test_without_its_sign_there_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "server.json").mkdir()
    lock = DataLock(tmp_path)
    assert not lock.take("here")
    assert "server.json" in lock.refusal()
    (tmp_path / "server.json").rmdir()
    other = DataLock(tmp_path)
    assert other.take("there")
    assert not lock.take("here")
    assert "there" in lock.refusal()
    other.release()


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    folder = tmp_path / "state" / "server.lock"
    folder.mkdir(parents=True)
    return folder


async def test_every_request_is_told_until_it_can_be_used(
    in_the_way: Path, fetch: Fetch, jp_serverapp: Any
) -> None:
    for _ in range(2):
        status, answer = await fetch("GET", "tinker", "runs")
        assert status == 503
        assert str(in_the_way.parent) in answer["detail"]
        assert "TinkerExtension.state_dir" in answer["detail"]
    in_the_way.rmdir()  # noqa: ASYNC240
    status, answer = await fetch("GET", "tinker", "runs")
    assert (status, answer["runs"]) == (200, [])


async def test_a_key_that_cannot_be_looked_up(
    service: TinkerService, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/a/secret/place")

    monkeypatch.setattr(service._database, "open", denied)
    status, sentence = await ask("GET", "get_server_capabilities", key="tml-key-any")
    assert (status, "/a/secret/place" in sentence) == (503, False)
