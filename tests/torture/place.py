"""A server that can be broken: killed, started again, and made to fail at chosen places."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from tests.servers import Server

from .faults import Faults

T = TypeVar("T")
_PATIENCE = 1800.0  # seconds, for a slow machine


@dataclass
class Place:
    """The server that runs now in its home; another one follows it there with the same address."""

    server: Server
    faults: Faults
    _start: Callable[[], Server]

    @property
    def state(self) -> Path:
        """Where the server keeps everything."""
        return self.server.home / "data/tinker"

    def start_again(self) -> None:
        self.server = self._start()

    def kill_server(self) -> None:
        self.server.process.kill()
        self.server.process.wait()

    def kill_engine(self) -> int | None:
        """Its process, if there was one."""
        with suppress(OSError):  # server or engine is just dying
            pid = self.server.engine_pid()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                return pid
        return None

    def kill_idle_engine(self) -> None:
        """Kill the engine that there is, and wait until the server knows."""
        pid = self.kill_engine()
        assert pid is not None
        self.await_end(pid)

    @staticmethod
    def await_end(pid: int) -> None:
        """Wait until a process is gone and its parent has seen it.

        Before that a request may be sent to a dead engine, and be taken for what it died of.
        """
        while psutil.pid_exists(pid):
            time.sleep(0.01)

    def in_time(self, work: Callable[[], T]) -> T:
        """What `work` returns, done on a thread: one that waits for ever fails its test alone."""
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(_PATIENCE)
        log = "\n".join(self.server.log.splitlines()[-60:])
        assert not thread.is_alive(), f"the client waits for ever; the server's log ends:\n{log}"
        if errors:
            raise AssertionError(f"the client failed; the server's log ends:\n{log}") from errors[0]
        return results[0]
