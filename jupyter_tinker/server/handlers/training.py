"""Creating runs, and everything a run does in the order of its numbers."""

from __future__ import annotations

import io
import ipaddress
from functools import partial

import zstandard
from jupyter_server.auth.decorator import authorized
from tornado import web

from ...wire import tinker
from ..schema import RunRow
from .base import TinkerHandler

_SLICE = 1024


class RequestHandler(TinkerHandler):
    """A handler whose answer is a future."""

    def reply_future(self, request_id: str, run_id: str | None = None) -> None:
        self.reply({"request_id": request_id, **({"model_id": run_id} if run_id else {})})


class CreateModelHandler(RequestHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.CreateModel)
        self.reply_future(
            await self.service.create_run(
                body, self.body(), self.username, allow_path=self.may_name_paths
            )
        )


class CreateCustomLossHandler(RequestHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        address = await self.parse(tinker.CustomLossAddress)
        self.reply_future(await self.service.create_custom_loss(address, self.body()))


class LoadWeightsHandler(RequestHandler):
    """Both forms: a session makes a new run of a checkpoint, a model id loads into a run."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        payload = self.body()
        if b'"session_id"' not in payload:
            address = await self.parse(tinker.Sequenced)
            request_id = await self.service.submit(
                address.model_id, address.seq_id, "load_weights", payload
            )
            return self.reply_future(request_id, address.model_id)
        body = await self.parse(tinker.CreateViaLoad)
        self.reply_future(
            await self.service.create_run_from_checkpoint(
                body, payload, self.username, allow_path=self.may_name_paths
            )
        )


class SequencedHandler(RequestHandler):
    """A JSON request of a run; only its address is read before it is accepted."""

    kind: str

    def initialize(self, kind: str) -> None:  # type: ignore[override]
        super().initialize()
        self.kind = kind

    @web.authenticated
    @authorized
    async def post(self) -> None:
        address = await self.parse(tinker.Sequenced)
        request_id = await self.service.submit(
            address.model_id, address.seq_id, self.kind, self.body()
        )
        self.reply_future(request_id, address.model_id)


class ForwardBackwardHandler(RequestHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = self.body()
        encoding = self.request.headers.get("Content-Encoding", "identity")
        if encoding == "zstd":
            body = await self.off_loop(partial(self._decompress, body), len(body))
        elif encoding != "identity":
            raise web.HTTPError(415, f"Content-Encoding {encoding[:50]!r} is not known; use zstd.")
        address = await self.off_loop(partial(tinker.forward_backward_address, body), len(body))
        request_id = await self.service.submit(
            address.model_id,
            address.seq_id,
            "forward_backward",
            body,
            forward_only=address.forward_only,
        )
        self.reply_future(request_id, address.model_id)

    def _decompress(self, body: bytes) -> bytes:
        """One zstd frame. What it says of its own size is not believed: it is read in slices whose
        content is bounded (a block of 128 KiB takes 4 bytes at least), up to the limit."""
        frame = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
        whole = io.BytesIO()
        room = self.extension.max_body_bytes
        try:
            for start in range(0, len(body), _SLICE):
                room -= whole.write(frame.decompress(body[start : start + _SLICE]))
                if room < 0:
                    raise self.too_large()
                if frame.eof:
                    return whole.getvalue()
        except zstandard.ZstdError as error:
            raise tinker.BadRequest(f"The body is not valid zstd: {error}.") from None
        raise tinker.BadRequest("The zstd body ends too early; was it cut short?")


class GetInfoHandler(TinkerHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        body = await self.parse(tinker.ModelId)
        run = await self.service.run(body.model_id)
        self.reply(
            {
                "model_id": run.id,
                "model_data": {
                    "arch": run.row.architecture,
                    "model_name": run.row.base_model,
                    "tokenizer_id": self._tokenizer_id(run.row),
                },
                "is_lora": True,
                "lora_rank": run.lora.rank,
                "model_name": run.row.base_model,
                "optimizer_config": {"type": "adamw"},
                "type": "get_info",
            }
        )

    def _tokenizer_id(self, row: RunRow) -> str | None:
        """What the SDK gives to `AutoTokenizer`: the folder, where the client shares our disk."""
        if _is_loopback(self.request.remote_ip):
            return row.base_path
        return row.hub_id


def _is_loopback(address: str | None) -> bool:
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return not address  # a Unix socket has no address, and one machine


SEQUENCED = ("optim_step", "save_weights", "save_weights_for_sampler", "save_weights_external")
HANDLERS = [
    (r"/create_model", CreateModelHandler),
    (r"/create_custom_loss", CreateCustomLossHandler),
    (r"/load_weights", LoadWeightsHandler),
    (r"/forward_backward", ForwardBackwardHandler),
    (r"/get_info", GetInfoHandler),
    *((rf"/{kind}", SequencedHandler, {"kind": kind}) for kind in SEQUENCED),
]
