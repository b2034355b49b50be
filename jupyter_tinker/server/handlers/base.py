"""What all Tinker handlers share: who asks, how much they may send, and how errors look."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import responses
from typing import TYPE_CHECKING, Any, TypeVar

from jupyter_server.auth import User
from jupyter_server.base.handlers import APIHandler
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from tornado import web

from ...wire import ops, tinker
from .. import keys
from ..catalog import UnknownModelError
from ..checkpoints import UnknownCheckpoint
from ..engine_client import EngineDied
from ..history import HistoryGone
from ..lr_finder import SweepUnderWay
from ..registry import UnknownRun
from ..samplers import UnknownSampler
from ..service import TinkerService
from ..sessions import UnknownSession
from ..watchers import TooManyWatchers

if TYPE_CHECKING:
    from ..extension import TinkerExtension

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

# A body below this is read on the event loop: handing it to a thread would cost more.
_SMALL_BODY = 2**16
# Of a body that is refused, so much is read before the connection is cut.
_DRAINED = 2**33

# How Jupyter names a person of whom it only knows that they have the token.
_ANONYMOUS = re.compile(r"[0-9a-f]{32} Anonymous \w+")

_NO_KEY = (
    "Authentication failed: send X-API-Key (or Authorization: Bearer) with tml- and the Jupyter "
    "server's token, or with a key made by `jupyter tinker key create NAME` that has not been "
    "revoked."
)
_NO_KEYS = "The server cannot read its keys; its log says why."
# The status of each exception that may leave a handler; all carry a sentence.
_STATUS: dict[type[Exception], int] = {
    tinker.BadRequest: 400,
    ops.OpError: 400,
    keys.InvalidKey: 400,
    UnknownModelError: 404,
    UnknownSession: 404,
    UnknownRun: 404,
    UnknownCheckpoint: 404,
    UnknownSampler: 404,
    EngineDied: 503,
    HistoryGone: 404,
    SweepUnderWay: 409,
    TooManyWatchers: 503,
}


@web.stream_request_body
class TinkerHandler(APIHandler):
    """Authenticates by `X-API-Key` or in Jupyter's own ways, before the body is read."""

    auth_resource = "tinker"

    def initialize(self) -> None:
        # Put together as it comes in: all at the end would hold up everybody else for as long.
        self._body = io.BytesIO()
        self._received = 0
        self.key_name: str | None = None  # of the Tinker key that was used, if one was

    @property
    def service(self) -> TinkerService:
        service: TinkerService = self.settings["tinker_service"]
        return service

    @property
    def extension(self) -> TinkerExtension:
        extension: TinkerExtension = self.settings["tinker_extension"]
        return extension

    @property
    def username(self) -> str:
        """Who asks, by a name that stays: for a request by token Jupyter makes up a new one."""
        user = self.current_user
        anonymous = _ANONYMOUS.fullmatch(f"{user.username} {user.name}")
        return "jupyter" if anonymous else str(user.username)

    # Who asks

    async def prepare(self, **_: Any) -> None:
        try:
            if not await self._use_tinker_key():
                await super().prepare()
        except web.HTTPError as error:
            # Jupyter answers 403 to strangers; the SDK reads 401 as a wrong key.
            if error.status_code == 403 and self.current_user is None and self.check_host():
                raise web.HTTPError(401, _NO_KEY) from None
            raise
        # OPTIONS is what browsers ask before they send a key, and says nothing of us.
        if self.current_user is None and self.request.method != "OPTIONS":
            raise web.HTTPError(401, _NO_KEY)
        self._bound_body()
        if (refusal := self.service.refusal()) is not None:
            raise web.HTTPError(503, refusal)

    async def _use_tinker_key(self) -> bool:
        """Whether the request carries a live key of ours. Any other key is taken for Jupyter's
        token and given to its identity provider as such."""
        key = self.request.headers.get("X-API-Key", "") or self._bearer()
        if key.startswith(keys.PREFIX):
            try:
                self.key_name = await self.service.keys.owner(key)
            except OSError:  # where, strangers need not know
                self.log.exception("The keys cannot be read.")
                raise web.HTTPError(503, _NO_KEYS) from None
        elif key:
            self.request.headers["Authorization"] = f"token {key.removeprefix('tml-')}"
        if self.key_name is None:
            return False
        if not self.check_host():
            raise web.HTTPError(403)
        self.current_user = self._jupyter_current_user = User(
            username=f"tinker-key:{self.key_name}", name=self.key_name
        )
        self.set_cors_headers()
        return True

    def set_secure_cookie(self, name: str, value: str | bytes, *rest: Any, **more: Any) -> None:
        """Jupyter would log in, at each request, who sends a token with each of them."""
        if "Authorization" not in self.request.headers:
            super().set_secure_cookie(name, value, *rest, **more)

    def _bearer(self) -> str:
        """A Tinker key as OpenAI's clients send it; Jupyter reads other Bearer tokens itself."""
        scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
        return key if scheme.lower() == "bearer" and key.startswith("tml-") else ""

    @property
    def may_name_paths(self) -> bool:
        """Keys open what the catalogue lists; the server's owner may name any folder."""
        return self.key_name is None

    @property
    def token_authenticated(self) -> bool:
        return self.key_name is not None or bool(super().token_authenticated)

    # What they send

    def _bound_body(self) -> None:
        # A body that is refused is still read, and dropped, so that its sender sees the answer.
        self.request.connection.set_max_body_size(_DRAINED)  # type: ignore[union-attr]
        length = self.request.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > self.extension.max_body_bytes:
            raise self.too_large()

    def data_received(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if self._finished or self._received > self.extension.max_body_bytes:
            self._body = io.BytesIO()
        else:
            self._body.write(chunk)

    def too_large(self) -> web.HTTPError:
        limit = self.extension.max_body_bytes
        self.set_header("Connection", "close")
        return web.HTTPError(
            413,
            f"The request body is larger than this server takes ({limit} bytes); send smaller "
            "batches, or raise TinkerExtension.max_body_bytes.",
        )

    def body(self) -> bytes:
        """The body as it was sent. Raises 413 if it was too large to be kept."""
        if self._received > self.extension.max_body_bytes:
            raise self.too_large()
        return self._body.getvalue()

    async def parse(self, model: type[M]) -> M:
        """The JSON body, read. Raises `BadRequest`."""
        body = self.body()
        return await self.off_loop(lambda: tinker.parse(model, body), len(body))

    async def off_loop(self, work: Callable[[], T], size: int) -> T:
        """Do `work` in a thread if the body it reads is large."""
        return work() if size < _SMALL_BODY else await asyncio.to_thread(work)

    # What they get

    def reply(self, value: dict[str, Any]) -> None:
        self.finish(json.dumps(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        status, sentence = explain(status_code, error)
        self.set_status(status)
        if status >= 500:
            self.log.error("%s %s: %s", self.request.method, self.request.path, sentence)
        self.finish(json.dumps({"detail": sentence, "message": sentence}))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if _status(value) is None:
            super().log_exception(typ, value, tb)

    def int_argument(self, name: str, default: int, largest: int) -> int:
        """A query argument that is a number from 0 to `largest`. Raises 400."""
        text = self.get_query_argument(name, str(default))
        if not text.isdecimal() or len(text) > 18:
            raise web.HTTPError(400, f"{name} must be a whole number, and is {text[:50]!r}.")
        return min(int(text), largest)

    def check_access_scope(self) -> None:
        """Both scopes are the same here, where who may ask sees all. Raises 400 for others."""
        scope = self.get_query_argument("access_scope", "owned")
        if scope not in ("owned", "accessible"):
            raise web.HTTPError(
                400, f"access_scope must be owned or accessible, and is {scope[:50]!r}."
            )


def rfc3339(seconds: float) -> str:
    """A time of the database as the SDK reads it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _status(error: object) -> int | None:
    return next((code for kind, code in _STATUS.items() if isinstance(error, kind)), None)


def explain(status: int, error: object) -> tuple[int, str]:
    """The status and the sentence that a client gets for an error."""
    known = _status(error)
    if known is not None and isinstance(error, Exception):
        return known, str(error.args[0]) if error.args else str(error)
    if isinstance(error, web.HTTPError):
        return status, error.log_message or error.reason or _phrase(status)
    if isinstance(error, SQLAlchemyError):
        # 503 is retried by the SDK for minutes: time to make room on the disk.
        return 503, f"The server's database failed: {str(error).splitlines()[0][:300]}"
    return status, _phrase(status)


def _phrase(status: int) -> str:
    return responses.get(status, "Unknown error")


class NotFoundHandler(TinkerHandler):
    """Everything under `/tinker` that does not exist; strangers do not learn even that."""

    @web.authenticated
    async def get(self) -> None:
        raise web.HTTPError(404, f"There is nothing at {self.request.path[:200]}.")

    post = put = delete = patch = head = get
