"""Runs a program to its end in a process of its own, and follows the lines that it prints."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence


class ChildError(RuntimeError):
    """A program failed; `lines` is what it wrote to standard error."""

    def __init__(self, status: int, lines: list[str]) -> None:
        super().__init__(status, lines)
        self.status = status
        self.lines = lines

    def last_words(self, count: int) -> str:
        """The last lines it wrote, or how it ended if it wrote none."""
        return " ".join(self.lines[-count:]).strip() or f"exit status {self.status}"


def run(command: Sequence[str], on_line: Callable[[str], None] | None = None) -> None:
    """Run `command`. Raises `ChildError`. Whatever interrupts the caller ends the program too."""
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            try:
                for line in process.stdout or ():
                    if on_line is not None:
                        on_line(line)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            errors.seek(0)
            raise ChildError(process.returncode, errors.read().splitlines())
