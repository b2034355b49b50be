"""The long work that is being done now, and how far it is: told while it lasts, and never stored.

Watchers are given the newest state of each task and no other, so that one that is slow costs
nothing. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Set
from typing import Any, Self

from ..wire.events import dumps
from ..wire.progress import Progress

_GAP_SECONDS = 0.2  # between two tellings, of all tasks together
_MOST_TASKS = 100  # that are told of at a time
# What takes less is not worth a line of the log, and then one now and then.
_FIRST_LINE_SECONDS = 5.0
_LINE_SECONDS = 30.0


class Task:
    """One piece of work. To be used as a context, or closed."""

    def __init__(self, tasks: Tasks, number: int, run_id: str | None, progress: Progress) -> None:
        self.number = number
        self.run_id = run_id  # None: of the engine or the server
        self.progress = progress
        self.since = time.time()
        self.version = 0
        self._tasks = tasks
        self._line_at = time.monotonic() + _FIRST_LINE_SECONDS
        self._body: tuple[int, bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, progress: Progress) -> None:
        """Say how far it is now."""
        if progress == self.progress:
            return
        self.progress = progress
        self.version += 1
        self._tasks.changed_soon()

    def close(self) -> None:
        """It is over, however it ended. May be called again."""
        self._tasks.remove(self)

    def line_is_due(self) -> bool:
        """Whether it is time for a line in the log; asked, it is not for a while."""
        due = time.monotonic() >= self._line_at
        if due:
            self._line_at = time.monotonic() + _LINE_SECONDS
        return due

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.number,
            "run_id": self.run_id,
            **self.progress.to_json(),
            "since": self.since,
        }

    def body(self) -> bytes:
        """What watchers are sent; encoded once for all."""
        if self._body is None or self._body[0] != self.version:
            told = {key: value for key, value in self.to_json().items() if key != "run_id"}
            self._body = self.version, _encode(self.run_id, {**told, "over": False})
        return self._body[1]


class Tasks:
    """What is going on in one server. Used on its event loop only."""

    def __init__(self, log: Any = None) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._log = log
        self._tasks: dict[int, Task] = {}
        self._count = 0
        self._told_at = float("-inf")
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, progress: Progress, run_id: str | None = None) -> Task:
        """Tell of a piece of work, until it is closed."""
        self._count += 1
        task = Task(self, self._count, run_id, progress)
        if len(self._tasks) < _MOST_TASKS:
            self._tasks[task.number] = task
            self.changed_soon()
        return task

    def remove(self, task: Task) -> None:
        if self._tasks.pop(task.number, None) is not None:
            self.changed_soon()

    def close(self) -> None:
        """Tell nothing more."""
        self._closed = True
        self._tasks.clear()
        if self._timer is not None:
            self._timer.cancel()

    def to_json(self) -> list[dict[str, Any]]:
        """All tasks, oldest first."""
        return [task.to_json() for task in self._tasks.values()]

    def news(self, seen: dict[int, int], runs: Set[str] | None) -> list[bytes]:
        """What a watcher of these runs, or of all, has not been told: `seen` has the version of
        each task that it knows, and is brought up to date. What is of no run is told to everybody.
        """
        over = [number for number in seen if number not in self._tasks]
        bodies = [_encode(None, {"task": number, "over": True}) for number in over]
        for number in over:
            del seen[number]
        for task in self._tasks.values():
            concerns = runs is None or task.run_id is None or task.run_id in runs
            if concerns and seen.get(task.number) != task.version:
                seen[task.number] = task.version
                bodies.append(task.body())
        return bodies

    def changed_soon(self) -> None:
        """Have watchers told: at once, if they were not just now."""
        if self._timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            wait = max(0.0, self._told_at + _GAP_SECONDS - loop.time())
            self._timer = loop.call_later(wait, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._told_at = asyncio.get_running_loop().time()
        for task in self._tasks.values():
            if self._log is not None and task.progress.total and task.line_is_due():
                run = f"Run {task.run_id}: " if task.run_id else ""
                self._log.info("%s%s", run, task.progress)
        self.on_change()


def _encode(run_id: str | None, data: dict[str, Any]) -> bytes:
    """As an event, but without an id: whoever connects again goes on behind the last real one."""
    event = {"id": None, "run_id": run_id, "time": time.time(), "kind": "progress"}
    whole = dumps({**event, "actor": None, "step": None, "data": data})
    return f"event: progress\ndata: {whole}\n\n".encode()
