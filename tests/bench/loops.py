"""Processes that train at a word, and stand still while another one is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_tinker.server.engine_process import environment

ROOT = Path(__file__).parents[2]


class Loop:
    """A process that reads "BATCH STEPS" lines, and says first of all what it is."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.peak_mib = 0.0
        self.about = self._line()
        self.threads = self.about["threads"]

    def steps(self, batch: str, count: int) -> list[float]:
        """Seconds of each step."""
        return self.ask(batch, count)["seconds"]

    def ask(self, batch: str, count: int) -> Any:
        """All that it answers."""
        assert self._process.stdin is not None
        print(batch, count, file=self._process.stdin, flush=True)
        answer = self._line()
        self.peak_mib = answer["peak_mib"]
        return answer

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def loop(module: str, model: Path, rank: int, *more: str, unembed: bool) -> Iterator[Loop]:
    arguments = [str(model), str(rank), str(int(unembed))]
    with child(module, *arguments, *more) as process:
        yield Loop(process)


@contextmanager
def child(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that ends when its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment(low_memory=False) if module.endswith(".alone") else None,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.communicate(timeout=60)
