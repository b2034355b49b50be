"""Counts the weights that transformers loads, in the place of its own progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Self

from transformers.utils import logging as transformers_logging

from ..wire.progress import Progress
from .progress import Report

_WEIGHTS = "Loading weights"  # what transformers calls it


@contextmanager
def counted_weights(what: str, report: Report) -> Iterator[None]:
    """Within the block, report how many of a model's tensors `from_pretrained` has loaded."""
    report(Progress(what, unit="tensors"))
    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)
    if set_hook is None:  # a release that has none: that it loads is told, and not how far it is
        yield
        return

    def bar(make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("desc") != _WEIGHTS:
            return make(*args, **kwargs)
        things = args[0] if args else kwargs.get("iterable", ())
        total = kwargs.get("total")
        if total is None and isinstance(things, Sized):
            total = len(things)
        return _Bar(things, lambda done: report(Progress(what, done, total, "tensors")))

    before = set_hook(bar)
    try:
        yield
    finally:
        set_hook(before)


class _Bar:
    """Counts what would be drawn."""

    def __init__(self, things: Iterable[Any], tell: Callable[[int], None]) -> None:
        self._things = things
        self._tell = tell
        self._done = 0

    def __iter__(self) -> Iterator[Any]:
        for thing in self._things:
            yield thing
            self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None  # how it would look

    def update(self, count: int = 1) -> None:
        self._done += count
        self._tell(self._done)
