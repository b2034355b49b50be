"""The command that tells in lines what happens."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, Self, TextIO

from traitlets import Int

from ..notebook.commands import RUN
from ..notebook.follow import follow
from ..notebook.sentences import words
from .remote import ServerCommand

_CLEAR = "\r\x1b[K"  # the line that the cursor is in


class WatchCommand(ServerCommand):
    """Tell what happens to a run, line by line."""

    name = "jupyter-tinker-watch"
    description = f"""Tell what happens to a run, or to all, line by line, until the run ends or you
    press Ctrl-C.

    {RUN}"""
    usage = "watch [RUN] [--after ID]"
    after = Int(
        None,
        allow_none=True,
        config=True,
        help="Begin behind the event of this id; 0: with all that has happened. Default: now.",
    )
    aliases = {**ServerCommand.aliases, "after": "WatchCommand.after"}  # noqa: RUF012

    def act(self, arguments: list[str]) -> None:
        if len(arguments) > 1:
            self.misused()
        try:
            with Screen(sys.stdout) as screen:
                for event, text in self._events(*arguments):
                    screen.show(event, text)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            # Whoever read the lines has enough of them; Python's last flush must not complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _events(self, name: str | None = None) -> Iterator[tuple[dict[str, Any], str]]:
        """What happens, and how far long work is; with the line that says it."""
        if name is None:
            for event in follow(self.client(), after=self.after, progress=True):
                yield event, line(event, with_run=True)
            return
        client = self.client()
        run = self.run(name)
        ended = run.info["ended"]
        if ended and self.after is None:
            yield run.info, f"{run.id} has ended: {ended}"
            return
        for event in follow(client, [run.id], self.after, progress=True):
            yield event, line(event)
            if event["kind"] == "run_ended":
                return


class Screen:
    """Lines one below the other, and at the end of a terminal one that says what takes long now.

    Elsewhere than in a terminal each task is a line once.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._tasks: dict[int, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._tasks and self._live:
            self._write(_CLEAR)

    def show(self, event: dict[str, Any], text: str) -> None:
        """Show what happened, or how far something is, in this line."""
        if event.get("kind") != "progress":
            self._write(f"{_CLEAR if self._live else ''}{text}\n{self._last_line()}")
            return
        task = event["data"]["task"]
        known = task in self._tasks
        if event["data"]["over"]:
            self._tasks.pop(task, None)
        else:
            self._tasks[task] = text
        if self._live:
            self._write(f"{_CLEAR}{self._last_line()}")
        elif not known and text:
            self._write(f"{text}\n")

    def _last_line(self) -> str:
        if not self._tasks or not self._live:
            return ""
        newest = self._tasks[max(self._tasks)]
        return newest[: shutil.get_terminal_size().columns - 1]

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def line(event: dict[str, Any], *, with_run: bool = False) -> str:
    """What happened, in a line of a terminal."""
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    run = f"{event['run_id']}  " if with_run and event["run_id"] else ""
    over = event["kind"] == "progress" and event["data"]["over"]
    text = "" if over else f"{at}  {run}{words(event)}"
    return "".join(char if char.isprintable() else " " for char in text)
