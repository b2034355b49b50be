"""What a server has stored, made by hand: no engine is needed for it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from jupyter_tinker.server.checkpoints import CheckpointPath
from jupyter_tinker.server.schema import RunRow
from jupyter_tinker.server.service import TinkerService

LORA = {"rank": 4, "seed": 1, "train_unembed": True, "train_mlp": True, "train_attn": False}
Ask = Callable[..., Awaitable[Any]]
Fetch = Callable[..., Awaitable[tuple[int, Any]]]


async def new_session(ask: Ask, **fields: Any) -> str:
    made = await ask("POST", "create_session", tags=["t"], sdk_version="0.38.0", **fields)
    return str(made["session_id"])


def add_run(service: TinkerService, session_id: str, number: int = 0) -> str:
    """A run as if the engine had made it."""
    row = RunRow(
        id=f"{session_id}:train:{number}",
        session_id=session_id,
        owner="jupyter",
        base_model="tiny",
        base_path="/models/tiny",
        hub_id=None,
        architecture="LlamaForCausalLM",
        lora=LORA,
        user_metadata={"n": 1},
        created_at=time.time(),
        last_request_at=time.time(),
    )
    name = row.id
    service._database.run(lambda db: db.add(row))
    return name


async def add_checkpoint(
    service: TinkerService, run: str, name: str, kind: Any = "weights", **values: Any
) -> CheckpointPath:
    """A checkpoint as if the engine had written it."""
    path = CheckpointPath(run, kind, name)
    folder = service.checkpoints.folder(path)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(name.encode() * 100)
    (folder / "adapter_config.json").write_text("{}")
    values = {"step": 3, "size_bytes": 2 + 100 * len(name), "expires_at": None, **values}
    await service.checkpoints.add(
        path,
        by="jupyter",
        base_model="tiny",
        base_path="/models/tiny",
        lora=LORA,
        user_metadata={"k": "v"},
        **values,
    )
    return path


async def copy(ask: Ask, path: Any, key: str = "k", **place: Any) -> Any:
    headers = {"X-Idempotency-Key": key, "X-Tinker-Weights-Access-Token": "of another account"}
    return await ask("POST", "copy_weights", headers=headers, source_path=str(path), **place)
