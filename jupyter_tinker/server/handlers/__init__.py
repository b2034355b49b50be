"""The HTTP edge: one module per part of the API, and no logic."""

from __future__ import annotations

from typing import Any

from . import (
    account,
    attach,
    batches,
    checkpoints,
    cleaning,
    downloads,
    events,
    futures,
    keys,
    lr_find,
    openai,
    previews,
    runs,
    sampling,
    sessions,
    training,
)
from .base import NotFoundHandler

_API = [
    *sessions.HANDLERS,
    *training.HANDLERS,
    *sampling.HANDLERS,
    *futures.HANDLERS,
    *checkpoints.HANDLERS,
    *downloads.HANDLERS,
    *account.HANDLERS,
]

_OURS = [
    *runs.HANDLERS,
    *batches.HANDLERS,
    *previews.HANDLERS,
    *lr_find.HANDLERS,
    *events.HANDLERS,
    *keys.HANDLERS,
    *cleaning.HANDLERS,
    *attach.HANDLERS,
]

HANDLERS: list[tuple[Any, ...]] = [
    *((rf"/tinker/api/v1{pattern}/?", *rest) for pattern, *rest in _API),
    *((rf"/tinker/oai/api/v1{pattern}/?", *rest) for pattern, *rest in openai.HANDLERS),
    *((rf"/tinker{pattern}/?", *rest) for pattern, *rest in _OURS),
    (r"/tinker(?:/.*)?", NotFoundHandler),
]
