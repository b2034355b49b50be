"""What `jupyter tinker gc` asks a server that runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

from jupyter_server.auth.decorator import authorized
from pydantic import BaseModel, ConfigDict, Field
from tornado import web

from .base import TinkerHandler

_DAY = 86_400.0


class Unused(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    older_than: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # days
    dry_run: bool = False


class CleaningHandler(TinkerHandler):
    """Drops the histories of runs that nobody uses."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(Unused)
        before = time.time() - body.older_than * _DAY
        gone = await self.service.cleaning.drop_unused(
            before, by=self.username, dry_run=body.dry_run
        )
        self.reply({"runs": [asdict(size) for size in gone]})


HANDLERS = [(r"/gc", CleaningHandler)]
