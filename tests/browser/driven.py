"""A run that the test's own process drives, beside what the browser does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from tests.raw import RawRun, some_data
from tests.servers import Server

ASKED = 1e-2  # the learning rate that its client asks for


class Driven(RawRun):
    """A run that a client drives step by step, so that nothing depends on time."""

    def __init__(self, server: Server, learning_rate: float = ASKED) -> None:
        super().__init__(server)
        self.learning_rate = learning_rate
        self.losses: list[float] = []  # of its steps

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def short(self) -> str:
        """What people see of its id."""
        return f"{self.session_id[:8]}:0"

    def train(self, count: int = 1) -> None:
        for step in range(self.steps + 1, self.steps + count + 1):
            loss = self.loss(self.forward_backward(2 * step - 1, some_data(step)))
            self.result(self.optim_step(2 * step, self.learning_rate))
            self.losses.append(loss)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Meanwhile its client trains, in a thread of its own."""
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                self.train()

        with ThreadPoolExecutor(1) as pool:
            worked = pool.submit(work)
            try:
                yield
            finally:
                over.set()
            worked.result()

    def steer(self, **fields: Any) -> None:
        status, answer = self.server.fetch(f"tinker/runs/{self.id}/controls", fields)
        assert status == 200, answer

    @property
    def controls(self) -> dict[str, Any]:
        controls: dict[str, Any] = self.server.fetch(f"tinker/runs/{self.id}/controls")[1]
        return controls
