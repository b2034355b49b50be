"""What a server is known by."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_tinker.server.identity import identity


def test_it_stays_and_is_nobody_elses(tmp_path: Path) -> None:
    first = identity(tmp_path / "a" / "new")
    assert len(first) == 32
    assert identity(tmp_path / "a" / "new") == first
    assert identity(tmp_path / "b") != first
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["identity"]


def test_a_disk_that_takes_nothing_stops_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert len(identity(tmp_path)) == 32
