"""Where the browser of the tests comes from."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

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
FIND = (
    "import os; os.geteuid = lambda: 0; from tests.browser.lab import chromium; print(chromium())"
)


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
