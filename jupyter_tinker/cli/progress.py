"""How far a command is, on standard error: a bar in a terminal, else a line for each stage."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..server.hub import Progress

_CLOCK_SECONDS = 1.0


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Gives what is told the stage, in words, and the fraction that is done, or None."""
    if sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines()


def _lines() -> Progress:
    last = ""

    def report(text: str, fraction: float | None) -> None:
        nonlocal last
        stage = text.partition(": ")[0]  # what stands behind it are numbers
        if stage != last and fraction != 1.0:  # that it is done is the command's last word
            print(text, file=sys.stderr, flush=True)
        last = stage

    return report


@contextmanager
def _bar() -> Iterator[Progress]:
    from tqdm import tqdm

    bar: Any = None
    over = threading.Event()

    def report(text: str, fraction: float | None) -> None:
        nonlocal bar
        if bar is None:
            form = "{desc} {percentage:3.0f}% |{bar}| {elapsed}"
            bar = tqdm(total=100, bar_format=form, file=sys.stderr)
            ticking.start()
        bar.set_description_str(text, refresh=False)
        bar.n = bar.n if fraction is None else round(100 * fraction)
        bar.refresh()

    def tick() -> None:
        """Let the clock go on where nothing is told for long."""
        while not over.wait(_CLOCK_SECONDS):
            bar.refresh()

    ticking = threading.Thread(target=tick, name="progress", daemon=True)
    try:
        yield report
    finally:
        over.set()
        if bar is not None:
            ticking.join()
            bar.close()
