"""A client that samples over HTTP, in one process with a server on a fake engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_tinker.server.checkpoints import CheckpointPath
from jupyter_tinker.wire import tinker_pb2 as pb
from tests.server.fake_engine import FakeEngine

API = ("tinker", "api", "v1")


@pytest.fixture
def jp_server_config(jp_server_config: dict[str, Any], tiny_model_dir: Path) -> dict[str, Any]:
    jp_server_config["TinkerExtension"].setdefault("hold_seconds", 5.0)
    jp_server_config["Catalog"]["aliases"]["also-tiny"] = str(tiny_model_dir)
    return jp_server_config


class Client:
    """Speaks the protocol as the SDK does."""

    def __init__(self, fetch: Any, service: Any) -> None:
        self._fetch = fetch
        self.service = service
        self.engine: FakeEngine = service.supervisor
        self.session = ""
        self._samplers = 0
        self._seq = 0
        self._run_seq = 0

    async def call(self, *route: str, method: str = "POST", **body: Any) -> Any:
        """The answer's JSON, or its bytes. Raises `HTTPClientError`."""
        payload = json.dumps(body) if method == "POST" else None
        answer = await self._fetch(*API, *route, method=method, body=payload, request_timeout=60)
        if "protobuf" in answer.headers["Content-Type"]:
            return answer.body
        return json.loads(answer.body) if answer.body else None

    async def refused(self, *route: str, **body: Any) -> tuple[int, str]:
        """The status and sentence that a request is refused with."""
        with pytest.raises(HTTPClientError) as refused:
            await self.call(*route, **body)
        assert refused.value.response is not None
        return refused.value.code, json.loads(refused.value.response.body)["detail"]

    async def new_session(self) -> None:
        made = await self.call("create_session", tags=[], sdk_version="test")
        self.session, self._samplers = made["session_id"], 0

    async def sampler(self, **what: Any) -> str:
        self._samplers += 1
        made = await self.call(
            "create_sampling_session",
            session_id=self.session,
            sampling_session_seq_id=self._samplers - 1,
            **what,
        )
        return str(made["sampling_session_id"])

    def body(self, sampler: str, seq_id: int | None = None, **fields: Any) -> dict[str, Any]:
        if seq_id is None:
            seq_id, self._seq = self._seq, self._seq + 1
        tokens = fields.pop("tokens", [10])
        params = {"max_tokens": fields.pop("max_tokens", 3), **fields.pop("params", {})}
        return {
            "sampling_session_id": sampler,
            "seq_id": seq_id,
            "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
            "sampling_params": params,
            "type": "sample",
            **fields,
        }

    async def asample(self, sampler: str, seq_id: int | None = None, **fields: Any) -> str:
        answer = await self.call("asample", **self.body(sampler, seq_id, **fields))
        return str(answer["request_id"])

    async def result(self, request_id: str) -> Any:
        while True:
            try:
                return await self.call("retrieve_future", request_id=request_id)
            except HTTPClientError as error:
                if error.code != 408:
                    raise

    async def error(self, request_id: str) -> dict[str, str]:
        result = await self.result(request_id)
        assert isinstance(result, dict), result
        return result

    async def poll(self, sampler: str, cursor: int = 0, clone: int = 0, **more: Any) -> Any:
        target = {
            "type": "sampling_session",
            "sampling_session_id": sampler,
            "cloned_sampler_id": clone,
        }
        more.setdefault("retrieved_request_ids", [])
        return await self.call("retrieve_futures", target=target, prev_cursor=cursor, **more)

    async def run(self, number: int = 0) -> str:
        lora = {"rank": 4, "seed": 1}
        made = await self.call(
            "create_model",
            session_id=self.session,
            model_seq_id=number,
            base_model="tiny",
            lora_config=lora,
        )
        return str((await self.result(made["request_id"]))["model_id"])

    async def step(self, run: str) -> Any:
        """A `forward_backward` and an `optim_step`."""
        self._run_seq += 2
        request = pb.ForwardBackwardRequest(
            model_id=run, seq_id=self._run_seq - 1, loss_fn="cross_entropy"
        )
        await self._fetch(
            *API,
            "forward_backward",
            method="POST",
            body=request.SerializeToString(),
            headers={"Content-Type": "application/x-protobuf"},
        )
        adam = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}
        made = await self.call("optim_step", model_id=run, seq_id=self._run_seq, adam_params=adam)
        return await self.result(made["request_id"])

    async def save(self, run: str, **fields: Any) -> Any:
        self._run_seq += 1
        fields.setdefault("seq_id", self._run_seq)
        made = await self.call("save_weights_for_sampler", model_id=run, **fields)
        return await self.result(made["request_id"])

    async def copy(self, run: str, **fields: Any) -> str:
        self._samplers += 1
        fields = {"kind": "snapshot", "sampling_session_seq_id": self._samplers - 1, **fields}
        saved = await self.save(run, **fields)
        assert saved["path"] is None, saved
        return str(saved["sampling_session_id"])

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():  # noqa: ASYNC110 (what is waited for has no event)
                await asyncio.sleep(0.002)


@pytest.fixture
def client(jp_fetch: Any, jp_serverapp: Any, jp_asyncio_loop: Any) -> Client:
    made = Client(jp_fetch, jp_serverapp.web_app.settings["tinker_service"])

    async def begin() -> None:
        made.service.start("here")  # Jupyter's fixtures do not start extensions
        await made.new_session()

    jp_asyncio_loop.run_until_complete(begin())
    return made


async def add_checkpoint(client: Client, kind: str = "sampler_weights", name: str = "x") -> str:
    path = CheckpointPath("run", kind, name)  # type: ignore[arg-type]
    client.service.checkpoints.folder(path).mkdir(parents=True, exist_ok=True)
    await client.service.checkpoints.add(
        path,
        base_model="tiny",
        base_path="/models/tiny",
        lora={"rank": 4},
        step=1,
        size_bytes=1,
        user_metadata=None,
        expires_at=None,
    )
    return str(path)
