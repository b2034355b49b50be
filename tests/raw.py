"""Speaks the protocol without the SDK: for what the SDK never sends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jupyter_tinker.wire import tinker_pb2 as pb
from tests.servers import Server

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def datum(tokens: Sequence[int], targets: Sequence[int], weights: Sequence[float]) -> pb.Datum:
    made = pb.Datum()
    made.model_input.add().encoded_text.tokens = np.asarray(tokens, "<i4").tobytes()
    for name, dtype, values in (("target_tokens", "<i8", targets), ("weights", "<f4", weights)):
        tensor = made.loss_fn_inputs[name]
        tensor.dense = np.asarray(values, dtype).tobytes()
        tensor.dtype = pb.DTYPE_INT64 if dtype == "<i8" else pb.DTYPE_FLOAT32
        tensor.shape.append(len(values))
    return made


def some_data(seed: int, count: int = 2, length: int = 12, vocab: int = 64) -> list[pb.Datum]:
    draw = np.random.default_rng(seed)
    rows = [draw.integers(5, vocab, length + 1).tolist() for _ in range(count)]
    return [datum(row[:-1], row[1:], [1.0] * length) for row in rows]


class RawRun:
    """A run driven by hand-made requests with hand-chosen numbers."""

    def __init__(self, server: Server, *, model: str = "tiny", **lora: Any) -> None:
        self.server = server
        _, answer = server.fetch("tinker/api/v1/create_session", {"tags": [], "sdk_version": "raw"})
        self.session_id: str = answer["session_id"]
        self.id = f"{self.session_id}:train:0"
        lora = {"rank": 4, "seed": 1, **lora}
        body = {"session_id": self.session_id, "model_seq_id": 0, "base_model": model}
        status, answer = self.post("create_model", {**body, "lora_config": lora})
        assert status == 200, answer
        assert self.result(answer["request_id"])["model_id"] == self.id

    def post(self, route: str, body: Any, **options: Any) -> tuple[int, Any]:
        return self.server.fetch(f"tinker/api/v1/{route}", body, **options)

    def body(
        self, seq_id: int, data: Sequence[pb.Datum], loss: str = "cross_entropy", **fields: Any
    ) -> bytes:
        request = pb.ForwardBackwardRequest(
            model_id=self.id, seq_id=seq_id, data=data, loss_fn=loss, **fields
        )
        return request.SerializeToString()

    def forward_backward(
        self, seq_id: int, data: Sequence[pb.Datum], loss: str = "cross_entropy", **fields: Any
    ) -> str:
        """Submit; returns the future's id."""
        return self.submit_body(self.body(seq_id, data, loss, **fields))

    def submit_body(self, body: bytes) -> str:
        status, answer = self.post("forward_backward", body, headers=PROTOBUF)
        assert status == 200, answer
        return str(answer["request_id"])

    def submit(self, route: str, seq_id: int, **fields: Any) -> str:
        status, answer = self.post(route, {"model_id": self.id, "seq_id": seq_id, **fields})
        assert status == 200, answer
        return str(answer["request_id"])

    def optim_step(self, seq_id: int, learning_rate: float = 1e-2, **fields: Any) -> str:
        adam = {"learning_rate": learning_rate, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
        return self.submit("optim_step", seq_id, adam_params={**adam, **fields})

    def train(self, steps: Iterable[int]) -> None:
        """Make these steps, the first of which is 1, one after the other."""
        for step in steps:
            self.loss(self.forward_backward(2 * step - 1, some_data(step)))
            self.result(self.optim_step(2 * step))

    def poll(self, request_id: str) -> tuple[int, Any]:
        return self.post("retrieve_future", {"request_id": request_id})

    def poll_until(self, request_id: str) -> Any:
        """The body of the result: JSON, or bytes."""
        status, answer, started = 408, None, time.monotonic()
        while status == 408:
            assert time.monotonic() - started < 90, f"request {request_id} is still pending"
            status, answer = self.poll(request_id)
        assert status == 200, answer
        return answer

    def result(self, request_id: str) -> Any:
        """The result: a dict, or a `ForwardBackwardOutput`."""
        answer = self.poll_until(request_id)
        return pb.ForwardBackwardOutput.FromString(answer) if isinstance(answer, bytes) else answer

    def loss(self, request_id: str) -> float:
        result = self.result(request_id)
        assert not isinstance(result, dict), result
        return float(result.metrics["loss:sum"])

    def error(self, request_id: str) -> Mapping[str, str]:
        result = self.result(request_id)
        assert isinstance(result, dict), result
        assert "error" in result, result
        return result
