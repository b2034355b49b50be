"""A run that the test's own process drives, beside what the browser does."""

from __future__ import annotations

from typing import Any

from tests.raw import RawRun, some_data
from tests.servers import Server

ASKED = 1e-2  # the learning rate that its client asks for


class Driven:
    """A run that this process drives step by step, so that nothing depends on time."""

    def __init__(self, server: Server, learning_rate: float = ASKED) -> None:
        self.raw = RawRun(server)
        self.learning_rate = learning_rate
        self.id = self.raw.id
        self.made = 0

    def train(self, count: int = 1) -> None:
        for _ in range(count):
            self.made += 1
            self.raw.loss(self.raw.forward_backward(2 * self.made - 1, some_data(self.made)))
            self.raw.result(self.raw.optim_step(2 * self.made, self.learning_rate))

    @property
    def controls(self) -> dict[str, Any]:
        controls: dict[str, Any] = self.raw.server.fetch(f"tinker/runs/{self.id}/controls")[1]
        return controls
