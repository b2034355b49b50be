"""Python environments of their own, in which the package is installed as a user installs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and what its programs see of the machine: nothing but itself and
    `tools`."""

    folder: Path
    tools: tuple[Path, ...] = ()

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return {**kept, "PATH": os.pathsep.join(map(str, (self.folder / "bin", *self.tools)))}

    def which(self, program: str) -> str | None:
        return shutil.which(program, path=self.variables["PATH"])

    def run(
        self, *command: str | Path, more: Mapping[str, str] | None = None, **options: object
    ) -> str:
        """What a command prints; raises `AssertionError` with all of it if that fails."""
        done = subprocess.run(
            command,
            env={**self.variables, **(more or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            **options,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def pip_install(self, *what: str | Path) -> None:
        options = ("--disable-pip-version-check", "--quiet", "-c", REPOSITORY / "constraints.txt")
        self.run(self.python, "-m", "pip", "install", *options, *what)


def make(folder: Path, *, tools: tuple[Path, ...] = ()) -> Environment:
    """A new, empty environment in `folder`."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return Environment(folder, tools)
