"""New runs: of a base model, or of a checkpoint; from a client's wish to a run in its queue."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import asdict
from typing import Any

from ..wire import ops, tinker
from .catalog import BaseModel, Catalog
from .futures import Request, new_id
from .journal import Journal
from .registry import Registry, why_ended
from .run_store import RunStore
from .runs import Run, id_of_run
from .saving import Saving
from .schema import RunRow
from .training_steps import unsupported_optimizer

# More would be a mistake: an adapter of full rank already holds as much as the matrix it adapts.
_LARGEST_RANK = 4096


class RunCreation:
    """Makes runs, in sessions that live."""

    def __init__(
        self,
        *,
        journal: Journal,
        run_store: RunStore,
        catalog: Catalog,
        registry: Registry,
        saving: Saving,
        lora_alpha: float,
    ) -> None:
        self._journal = journal
        self._run_store = run_store
        self._catalog = catalog
        self._registry = registry
        self._saving = saving
        self._lora_alpha = lora_alpha

    async def of_base_model(
        self, body: tinker.CreateModel, payload: bytes, owner: str, *, allow_path: bool
    ) -> str:
        """Accept `create_model`; returns the future's id.

        Raises `catalog.UnknownModelError` and `BadRequest`.
        """
        model = await asyncio.to_thread(
            self._catalog.resolve, body.base_model, allow_path=allow_path
        )
        lora = self._lora(body)
        row = self._run_row(body, body.base_model, model, asdict(lora), owner)
        return await self._admit(Run(row, lora), "create_model", payload)

    async def of_checkpoint(
        self, body: tinker.CreateViaLoad, payload: bytes, owner: str, *, allow_path: bool
    ) -> str:
        """Accept create-via-load; returns the future's id.

        Raises as `of_base_model` does, `OpError` and `checkpoints.UnknownCheckpoint`.
        """
        _refuse_optimizer(body.optimizer_config)
        saved = await self._saving.describe(body.path)
        base_model = body.base_model or saved.base_model
        # A base that a path named once is still the owner's choice when its checkpoint is loaded.
        own_path = base_model == saved.base_model
        model = await asyncio.to_thread(
            self._catalog.resolve, base_model, allow_path=allow_path or own_path
        )
        row = self._run_row(body, base_model, model, saved.lora, owner)
        return await self._admit(Run(row, ops.LoraSpec(**saved.lora)), "create_via_load", payload)

    def _run_row(
        self,
        body: tinker.CreateModel | tinker.CreateViaLoad,
        base_model: str,
        model: BaseModel,
        lora: dict[str, Any],
        owner: str,
    ) -> RunRow:
        now = time.time()
        return RunRow(
            id=id_of_run(body.session_id, body.model_seq_id),
            session_id=body.session_id,
            owner=owner,
            base_model=base_model,
            base_path=str(model.path),
            hub_id=model.hub_id,
            architecture=model.architecture,
            lora=lora,
            user_metadata=body.user_metadata,
            created_at=now,
            last_request_at=now,
            started_from=body.path if isinstance(body, tinker.CreateViaLoad) else None,
        )

    def _lora(self, body: tinker.CreateModel) -> ops.LoraSpec:
        _refuse_optimizer(body.optimizer_config)
        config = body.lora_config or tinker.LoraConfig()
        if not 1 <= config.rank <= _LARGEST_RANK:
            raise tinker.BadRequest(
                f"lora_config.rank must lie between 1 and {_LARGEST_RANK}, and is {config.rank}."
            )
        seed = config.seed if config.seed is not None else secrets.randbits(31)
        return ops.LoraSpec(
            rank=config.rank,
            seed=seed,
            alpha=self._lora_alpha,
            train_attn=config.train_attn,
            train_mlp=config.train_mlp,
            train_unembed=config.train_unembed,
        )

    async def _admit(self, run: Run, kind: str, payload: bytes) -> str:
        known = await self._run_store.run(run.id)
        if known is not None and known.copied_from is not None:
            raise tinker.BadRequest(why_ended(known))
        request = Request(new_id(), run.id, 0, kind, payload)
        row = request.row(self._journal.server)
        request_id = await self._journal.add_run(run.row, row, payload)
        if request_id == request.id:
            self._registry.add(run, request)
        return request_id


def _refuse_optimizer(config: tinker.OptimizerConfig | None) -> None:
    if config is not None and config.type != "adamw":
        raise tinker.BadRequest(unsupported_optimizer(config.type))
