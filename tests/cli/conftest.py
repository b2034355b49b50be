from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_tinker.cli import TinkerApp, main
from tests.notebook.conftest import client, named, nowhere, stub  # noqa: F401

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    nowhere: None,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """`jupyter tinker ...`: its exit status, what it printed, and what it complained of."""
    for name in ("DATA", "CONFIG"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / "jupyter"))

    def run(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as ended:
            status = int(ended.code or 0)
        TinkerApp.clear_instance()
        commands = [command for command, _ in TinkerApp.subcommands.values()]
        for app in commands:
            app.clear_instance()
        return status, *capsys.readouterr()

    return run
