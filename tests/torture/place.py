"""A server that can be broken: killed, started again, and made to fail at chosen places."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
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

    def in_time(self, *works: Callable[[], T]) -> list[T]:
        """What these return, done side by side, each on a thread: one that waits for ever fails
        its test alone."""
        futures = [_begin(work) for work in works]
        done, waiting = wait(futures, _PATIENCE, return_when=FIRST_EXCEPTION)
        log = "\n".join(self.server.log.splitlines()[-60:])
        failed = next((error for future in done if (error := future.exception())), None)
        if failed is not None:
            raise AssertionError(f"a client failed; the server's log ends:\n{log}") from failed
        assert not waiting, f"a client waits for ever; the server's log ends:\n{log}"
        return [future.result() for future in futures]


def _begin(work: Callable[[], T]) -> Future[T]:
    """On a thread that does not keep the tests from ending."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
