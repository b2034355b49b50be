"""Where the browser of the tests comes from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock


def chromium() -> tuple[str | None, str]:
    """Where a Chromium is (None: where playwright keeps its own), and where it came from."""
    # Of the tests' processes one installs it, and the others wait: apt refuses to work for two.
    name = f"jupyter-tinker-chromium-{os.getuid()}.lock"
    with FileLock(Path(tempfile.gettempdir()) / name):
        return _find_chromium() or _install_chromium()


def _find_chromium() -> tuple[str, str] | None:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found, "the path"
    return None


def _install_chromium() -> tuple[str | None, str]:
    if os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        done = subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=False)
        if done.returncode == 0 and (found := shutil.which("chromium")):
            return found, "Debian's package"
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)
    return None, "playwright install"
