"""The command that tells in lines what happens."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from traitlets import Int

from ..notebook.follow import follow
from .remote import RUN, ServerCommand

_OVERRIDES = ("learning_rate", "grad_clip_norm", "weight_decay")


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
    text = f"{at}  {run}{_words(event)}"
    return "".join(char if char.isprintable() else " " for char in text)


def _words(event: dict[str, Any]) -> str:
    kind, data, by = event["kind"], event["data"], _by(event)
    match kind:
        case "step":
            return _step(data)
        case "control_changed":
            return f"changed{by}: {_changes(data.get('before', {}), data.get('after', {}))}"
        case "resumed":
            return f"resumed{by}"
        case "rewound":
            return f"rewound to step {data.get('step')}{by}, now on branch {data.get('branch')}"
        case "guard":
            paused = "; the run is paused" if data.get("paused") else ""
            return f"guard {data.get('rule')}: {data.get('reason')}{paused}"
        case "run_revived":
            replayed = data.get("replayed")
            return f"revived in {data.get('seconds', 0):.1f} s; {replayed} operations made again"
        case "run_unloaded":
            return "not in memory any more; it is brought back when it is needed"
    told = data.get("reason") or data.get("path") or (json.dumps(data) if data else "")
    return kind.replace("_", " ") + by + (f": {told}" if told else "")


def _by(event: dict[str, Any]) -> str:
    return f" by {event['actor']}" if event["actor"] else ""


def _changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    def value(name: str, value: Any) -> str:
        if value is None:
            return "as asked" if name in _OVERRIDES else "none"
        return json.dumps(value)

    return ", ".join(
        f"{name} {value(name, before.get(name))} -> {value(name, after[name])}" for name in after
    )


def _step(row: dict[str, Any]) -> str:
    words = [f"step {row['step']}"]
    if row.get("branch"):
        words[0] += f" of branch {row['branch']}"
    if row.get("loss_mean") is not None:
        words.append(f"loss {row['loss_mean']:.4f}")
    if row.get("grad_norm") is not None:
        words.append(f"gradient norm {row['grad_norm']:.3g}")
    rate, asked = row.get("learning_rate"), row.get("learning_rate_requested")
    if rate is not None:
        differs = asked is not None and asked != rate
        words.append(f"learning rate {rate:.3g}" + (f" (asked: {asked:.3g})" if differs else ""))
    if row.get("skipped"):
        words.append(f"skipped: {row['skipped']}")
    return ", ".join(words)
