"""The learning rate finder: sweeps over copies of runs, begun, looked at and cancelled."""

from __future__ import annotations

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire.events import dumps
from ...wire.lr_find import SweepSettings
from .base import TinkerHandler


class LrFindHandler(TinkerHandler):
    """The last sweep of a run; one at a time."""

    @web.authenticated
    @authorized
    async def get(self, run_id: str) -> None:
        self.finish(dumps(await self.service.lr_finder.state(run_id)))

    @web.authenticated
    @authorized
    async def post(self, run_id: str) -> None:
        settings = await self.parse(SweepSettings)
        self.finish(dumps(await self.service.lr_finder.begin(run_id, settings, by=self.username)))

    @web.authenticated
    @authorized
    async def delete(self, run_id: str) -> None:
        self.finish(dumps(await self.service.lr_finder.cancel(run_id)))


HANDLERS = [(r"/runs/([^/]+)/lr_find", LrFindHandler)]
