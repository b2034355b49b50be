"""Builds the panel into the package where it is not there yet, so that a wheel has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PanelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs npm, which only a checkout needs: a wheel and an sdist hold the result."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        source = root / "labextension"
        if not source.exists() or (root / "jupyter_tinker/notebook/static/panel.js").exists():
            return
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(
                "Building jupyter_tinker from its repository needs Node.js 20 or newer with npm "
                "(Debian: npm); a wheel needs neither."
            )
        for command in (("ci", "--omit=dev", "--no-audit", "--no-fund"), ("run", "build")):
            subprocess.run([npm, *command], cwd=source, check=True)
