"""Sampling sessions, and samples of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire import tinker
from .base import TinkerHandler

if TYPE_CHECKING:
    from ...wire.sample_request import SampleRequest


class CreateSamplingSessionHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.CreateSamplingSession)
        sampler = await self.service.create_sampler(
            body, self.username, allow_path=self.may_name_paths
        )
        self.reply({"sampling_session_id": sampler, "type": "create_sampling_session"})


class JoinSamplingSessionHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.JoinSamplingSession)
        number = await self.service.sampling.samplers.join(body.sampling_session_id)
        self.reply({"client_counter": number, "type": "join_sampling_session"})


class SamplerHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def get(self, sampler_id: str) -> None:
        row = await self.service.sampling.get(sampler_id)
        self.reply(
            {"sampler_id": row.id, "base_model": row.base_model, "model_path": row.model_path}
        )


class SampleHandler(TinkerHandler):
    """Accepts what can be read; what only the model can tell comes back through the future."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        payload = self.body()
        request = await asyncio.to_thread(_read, payload)
        request_id = await self.service.sampling.submit(
            request.sampling_session_id, request.seq_id, request.num_samples, payload
        )
        # Made of the request's id, so that a retry is told the same.
        sequences = [f"{request_id}:{number}" for number in range(request.num_samples)]
        self.reply({"request_id": request_id, "sample_sequence_ids": sequences})


def _read(payload: bytes) -> SampleRequest:
    # Imported when somebody samples: numpy would make every start of the server slower.
    from ...wire import sample_request

    request = tinker.parse(sample_request.SampleRequest, payload)
    sample_request.spec(request)
    return request


HANDLERS = [
    (r"/create_sampling_session", CreateSamplingSessionHandler),
    (r"/join_sampling_session", JoinSamplingSessionHandler),
    (r"/samplers/([^/]+)", SamplerHandler),
    (r"/asample", SampleHandler),
]
