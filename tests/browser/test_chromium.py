"""Where the browser of the tests comes from, and what it leaves."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from tests.browser.lab import screenshot_path
from tests.conftest import pytest_terminal_summary

ROOT = Path(__file__).parents[2]
# Fails while another is at work, as apt does.
APT = """\
#!{python}
import pathlib, sys, time
folder = pathlib.Path(__file__).parent
(folder / "working").mkdir()
time.sleep(0.5)
if "install" in sys.argv:
    (folder / "chromium").touch(0o755)
(folder / "working").rmdir()
"""
FIND = """\
import os
os.geteuid = lambda: 0
from tests.browser.chromium import chromium
print(chromium())
"""


def test_processes_install_it_once(tmp_path):
    apt = tmp_path / "apt-get"
    apt.write_text(APT.format(python=sys.executable))
    apt.chmod(0o755)
    env = {**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    finders = [
        subprocess.Popen(
            [sys.executable, "-c", FIND], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    found = sorted(ast.literal_eval(finder.communicate(timeout=60)[0]) for finder in finders)
    path = str(tmp_path / "chromium")
    assert found == [(path, "Debian's package"), (path, "the path")]


def test_the_folder_of_screenshots_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("TINKER_SCREENSHOTS", str(tmp_path / "build" / "screenshots"))
    path = screenshot_path("end-of-test_it[a/b c-1.5]")
    assert path == tmp_path / "build" / "screenshots" / "end-of-test_it-a-b-c-1.5-.png"
    path.touch()
    monkeypatch.setenv("TINKER_SCREENSHOTS", "")
    assert screenshot_path("any") is None


def test_the_summary_names_the_browser_once():
    report = SimpleNamespace(user_properties=[("other", 1), ("chromium", "Chromium 150")])
    lines: list[str] = []
    stats = {"passed": [report, report], "warnings": [SimpleNamespace()]}
    pytest_terminal_summary(SimpleNamespace(stats=stats, write_line=lines.append))
    assert lines == ["The browser tests' browser: Chromium 150"]
