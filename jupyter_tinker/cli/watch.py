"""The command that tells in lines what happens."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from traitlets import Int

from ..notebook.commands import RUN
from ..notebook.follow import follow
from ..notebook.sentences import words
from .remote import ServerCommand


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
            for text in self._lines(*arguments):
                print(text, flush=True)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            # Whoever read the lines has enough of them; Python's last flush must not complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _lines(self, name: str | None = None) -> Iterator[str]:
        if name is None:
            for event in follow(self.client(), after=self.after):
                yield line(event, with_run=True)
            return
        client = self.client()
        run = self.run(name)
        ended = run.info["ended"]
        if ended and self.after is None:
            yield f"{run.id} has ended: {ended}"
            return
        for event in follow(client, [run.id], self.after):
            yield line(event)
            if event["kind"] == "run_ended":
                return


def line(event: dict[str, Any], *, with_run: bool = False) -> str:
    """What happened, in a line of a terminal."""
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    run = f"{event['run_id']}  " if with_run and event["run_id"] else ""
    text = f"{at}  {run}{words(event)}"
    return "".join(char if char.isprintable() else " " for char in text)
