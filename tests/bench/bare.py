"""Steps without the SDK, over a connection that stays open: its own work is not in them."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any

from tests.bench.data import Sequence
from tests.raw import RawRun, datum, pb
from tests.servers import Server


class BareRun(RawRun):
    """A run of rank `rank` on all linear layers."""

    def __init__(self, server: Server, *, model: str, rank: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port)
        self._next = 1
        super().__init__(server, model=model, rank=rank)

    def post(
        self, route: str, body: Any, *, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        told = {"X-API-Key": self.server.key, "Content-Type": "application/json"}
        sent = body if isinstance(body, bytes) else json.dumps(body)
        path = f"{self.server.base_url}tinker/api/v1/{route}"
        self._connection.request("POST", path, sent, {**told, **(headers or {})})
        answer = self._connection.getresponse()
        content = answer.read()
        plain = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if plain else content

    def steps(self, batch: list[Sequence], count: int) -> list[float]:
        """Seconds of `count` steps, with forward_backward and optim_step in flight."""
        data = [datum(s.tokens, s.targets, s.weights.tolist()) for s in batch]
        return [self._step(data) for _ in range(count)]

    def _step(self, data: list[pb.Datum]) -> float:
        body = self.body(self._next, data)
        started = time.perf_counter()
        forward = self.submit_body(body)
        optim = self.optim_step(self._next + 1, learning_rate=1e-4)
        self.poll_until(forward)
        self.poll_until(optim)
        self._next += 2
        return time.perf_counter() - started

    def close(self) -> None:
        self._connection.close()
