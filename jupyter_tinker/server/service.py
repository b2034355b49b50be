"""The Tinker service of one Jupyter server: its parts set going, and what the HTTP edge asks.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ..wire import tinker
from .futures import Request, new_id
from .parts import Parts
from .runs import Run


class TinkerService(Parts):
    """Sessions, runs and requests of one server."""

    _about = ""
    _engine_at_start = False
    _started = False

    def start(self, about: str, *, engine: bool = False) -> None:
        """Go on with what was pending, and begin the housekeeping. Called on the event loop.

        `about` tells other servers where this one is; `engine`: whether one is started, too.
        """
        self._about = about
        self._engine_at_start = engine
        if (refusal := self.refusal()) is not None:
            self._log.error("Tinker does nothing here. %s", refusal)

    def refusal(self) -> str | None:
        """Why this server does nothing; None if it does, and from then on."""
        if not self._started:
            if not self._lock.take(self._about):
                return self._lock.refusal()
            self._started = True
            self._begin()
        return None

    def _begin(self) -> None:
        self.events.start()
        for work in (
            self.lives.resume(),
            asyncio.to_thread(self.checkpoints.sweep),
            self.snapshots.sweep(),
            self.sessions.retire_runs(),
            self._housekeeping.tidy(),
            self._housekeeping.watch_clients(),
        ):
            self._background.spawn(work)
        if self._engine_at_start:
            self._background.spawn(self.lives.begin())

    async def stop(self) -> None:
        """End the engine and close the database."""
        await self.events.close()
        self._background.cancel()
        await self.lr_finder.close()
        await self.registry.close()
        await self.sampling.close()
        await self.lives.farewell()
        await self.supervisor.stop()
        await self.futures.stored()
        with suppress(Exception):
            await self._housekeeping.tidy_results()
        await self._backlog.close()
        await self._database.close()
        self._lock.release()

    # What the edge asks

    async def create_sampler(
        self, body: tinker.CreateSamplingSession, owner: str, *, allow_path: bool
    ) -> str:
        """Raises `UnknownSession`, and as `Sampling.create` does."""
        await self.sessions.live(body.session_id)
        return await self.sampling.create(body, owner, allow_path=allow_path)

    async def create_custom_loss(self, address: tinker.CustomLossAddress, payload: bytes) -> str:
        """Accept `create_custom_loss`; returns the future's id. Raises `UnknownSession`."""
        await self.sessions.live(address.session_id)
        # Requests are told apart by whose they are and their number; here the session is the owner.
        owner, number = address.session_id, address.custom_loss_seq_id
        request = Request(new_id(), owner, number, "create_custom_loss", payload)
        request_id = await self.futures.accept(request)
        if request_id == request.id:
            self.futures.open(request)
            self._background.spawn(self._custom_losses.create(request))
        return request_id

    async def create_run(
        self, body: tinker.CreateModel, payload: bytes, owner: str, *, allow_path: bool
    ) -> str:
        """Accept `create_model`; returns the future's id. Raises `UnknownSession`, and as
        `RunCreation.of_base_model` does."""
        await self.sessions.live(body.session_id)
        return await self._creation.of_base_model(body, payload, owner, allow_path=allow_path)

    async def create_run_from_checkpoint(
        self, body: tinker.CreateViaLoad, payload: bytes, owner: str, *, allow_path: bool
    ) -> str:
        """Accept create-via-load; returns the future's id. Raises `UnknownSession`, and as
        `RunCreation.of_checkpoint` does."""
        await self.sessions.live(body.session_id)
        return await self._creation.of_checkpoint(body, payload, owner, allow_path=allow_path)

    async def run(self, run_id: str) -> Run:
        """A run of this or of an earlier life of the server. Raises `UnknownRun`."""
        return await self.registry.get(run_id)

    async def copy_weights(self, body: tinker.CopyWeights, owner: str, key: str | None) -> str:
        """Copy a checkpoint; returns the copy's path. Raises as `Copies.copy` does, and
        `UnknownSession`."""
        if body.session_id is not None:
            await self.sessions.live(body.session_id)
        return str(await self.copies.copy(body, by=owner, key=key))

    async def submit(
        self, run_id: str, seq_id: int, kind: str, payload: bytes, *, forward_only: bool = False
    ) -> str:
        """Accept a request of a run; returns the future's id. Raises `UnknownRun`.

        The same `(run_id, seq_id)` gets the same future and is done once.
        """
        run = await self.registry.get(run_id)
        request = Request(new_id(), run_id, seq_id, kind, payload, forward_only)
        return await self.registry.submit(run, request)
