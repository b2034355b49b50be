"""A whole service on a fake engine, without HTTP, and a client of its runs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.journal import Result
from jupyter_tinker.server.model_folder import BaseModel
from jupyter_tinker.server.parts import Limits
from jupyter_tinker.server.sampling import SamplingLimits
from jupyter_tinker.server.schema import SessionRow
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import tinker
from jupyter_tinker.wire import tinker_pb2 as pb
from tests.server.fake_engine import FakeEngine

SESSION = "s"
RUN = f"{SESSION}:train:0"
ADAM = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8}

# What is asked of a run under a number: the kind, the payload, and whether it is forward only.
Asked = Callable[[str, int], tuple[str, bytes, bool]]


class OneModel:
    """A catalogue of one base model."""

    def resolve(self, name: str, *, allow_path: bool = False) -> BaseModel:
        return BaseModel(name, Path("/models/tiny"), 512, 384, "LlamaForCausalLM", None, True)


def make_service(
    folder: Path, engine: FakeEngine, database: Database | None = None, **limits: Any
) -> TinkerService:
    """A service whose state is in a folder, as an earlier life may have left it."""
    values = {
        "seq_gap": 5.0,
        "keep_results": 3600.0,
        "session_expiry": 3600.0,
        "snapshot_overhead": 0.03,
        "history_bytes": 2**40,
        **limits,
    }
    return TinkerService(
        database=database or Database(default_url(folder)),
        state_dir=folder,
        catalog=OneModel(),  # type: ignore[arg-type]
        supervisor=engine,  # type: ignore[arg-type]
        limits=Limits(**values),
        sampling_limits=SamplingLimits(100, 10, 3, 600.0),
        sampling_share=0.5,
        lora_alpha=32.0,
        log=logging.getLogger("test"),
    )


def add_session(database: Database, name: str = SESSION) -> None:
    row = SessionRow(id=name, created_at=1.0, owner="ada", sdk_version="", tags=[])
    database.run(lambda db: db.merge(row))


def forward_backward(seed: int, loss: str = "cross_entropy", *, only: bool = False) -> Asked:
    """One of a batch that the seed makes; `only`: without the backward."""

    def asked(run: str, seq_id: int) -> tuple[str, bytes, bool]:
        request = pb.ForwardBackwardRequest(
            model_id=run, seq_id=seq_id, loss_fn=loss, forward_only=only
        )
        tokens = np.arange(seed, seed + 3, dtype="<i4")
        request.data.add().model_input.add().encoded_text.tokens = tokens.tobytes()
        return "forward_backward", request.SerializeToString(), only

    return asked


def ask(kind: str, **fields: Any) -> Asked:
    """A request with a JSON body."""

    def asked(run: str, seq_id: int) -> tuple[str, bytes, bool]:
        body = {"model_id": run, "seq_id": seq_id, **fields}
        return kind, json.dumps(body).encode(), False

    return asked


def optim_step(**adam: Any) -> Asked:
    return ask("optim_step", adam_params={**ADAM, **adam})


def read(result: Result) -> dict[str, Any]:
    """A result as a client sees it."""
    if "protobuf" in result.content_type:
        return dict(pb.ForwardBackwardOutput.FromString(result.body).metrics)
    answer: dict[str, Any] = json.loads(result.body)
    return answer


class Client:
    """Asks for things in the order of its calls, and may wait for each."""

    def __init__(self, service: TinkerService, run: str = RUN) -> None:
        self.service = service
        self.run = run
        self.seq_id = 0

    async def create(self, number: int = 0) -> dict[str, Any]:
        self.run = f"{SESSION}:train:{number}"
        return await self.result(await create(self.service, number))

    async def submit(self, asked: Asked) -> str:
        """Returns the future's id."""
        self.seq_id += 1
        kind, payload, only = asked(self.run, self.seq_id)
        return await self.service.submit(self.run, self.seq_id, kind, payload, forward_only=only)

    async def ask(self, asked: Asked) -> dict[str, Any]:
        return await self.result(await self.submit(asked))

    async def result(self, request_id: str) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while (result := await self.service.futures.poll(request_id, 1.0)) is None:
                pass
        return read(result)

    async def pending(self, request_id: str, seconds: float = 0.05) -> bool:
        return await self.service.futures.poll(request_id, seconds) is None

    async def step(self, seed: int = 0, **adam: Any) -> dict[str, Any]:
        """A batch and a step; the step's metrics."""
        first = await self.submit(forward_backward(seed))
        second = await self.ask(optim_step(**adam))
        await self.result(first)
        metrics: dict[str, Any] = second["metrics"]
        return metrics


async def create(service: TinkerService, number: int = 0) -> str:
    body = {"session_id": SESSION, "model_seq_id": number, "base_model": "tiny"}
    body["lora_config"] = {"rank": 4, "seed": 1}
    payload = json.dumps(body).encode()
    parsed = tinker.parse(tinker.CreateModel, payload)
    return await service.create_run(parsed, payload, "ada", allow_path=True)


async def create_from(
    service: TinkerService, path: str, number: int, *, optimizer: bool = True
) -> str:
    body = {
        "session_id": SESSION, "model_seq_id": number, "path": path, "optimizer": optimizer,
    }  # fmt: skip
    payload = json.dumps(body).encode()
    parsed = tinker.parse(tinker.CreateViaLoad, payload)
    return await service.create_run_from_checkpoint(parsed, payload, "ada", allow_path=True)
