"""Imported by Python itself at the start of the server and of the engine: their places to break.

The tests put this folder on PYTHONPATH and name a folder in TORTURE_FAULTS; a file there arms the
fault of that name (see `tests/torture/faults.py`). The product's own code is as it is installed:
when one of its modules has been imported, functions of it are wrapped here.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_FOLDER = os.environ.get("TORTURE_FAULTS", "")
_reached: dict[tuple[str, float], int] = {}


def reach(point: str) -> None:
    """Die here if that is armed: once the point has been reached as often as the file says, and so
    many times in all."""
    file = os.path.join(_FOLDER, point)
    try:
        armed = os.stat(file).st_mtime_ns
    except FileNotFoundError:
        return
    key = point, armed
    _reached[key] = _reached.get(key, 0) + 1
    try:
        nth, times = map(int, Path(file).read_text().split())
        if _reached[key] >= nth:
            os.unlink(file)  # only one process can, and only once
            if times > 1:
                Path(file).write_text(f"{nth} {times - 1}")
            Path(f"{file}.fired").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
    except FileNotFoundError:
        pass


def mode(name: str) -> str | None:
    """The text of a fault that lasts for as long as its file is there; None without it."""
    try:
        return Path(_FOLDER, name).read_text()
    except FileNotFoundError:
        return None


# Wrapping


def around(owner: Any, name: str, before: Any = None, after: Any = None) -> None:
    """Have `before` and `after` called, with the arguments, around `owner.name`."""
    plain = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(*args, **kwargs)
        result = plain(*args, **kwargs)
        if after is not None:
            after(*args, **kwargs)
        return result

    setattr(owner, name, wrapped)


def at(point: str) -> Callable[..., None]:
    return lambda *args, **kwargs: reach(point)


def _engine(module: Any) -> None:
    around(module.Engine, "perform", before=_before_operation, after=_after_operation)


def _before_operation(engine: Any, op: Any) -> None:
    disk_full()
    time.sleep(float(mode(f"slow-{op.name}") or 0.0))
    poison = mode("poison")
    if poison and op.name == "forward_backward" and bytes.fromhex(poison) in bytes(op.body):
        os.kill(os.getpid(), signal.SIGKILL)


def _after_operation(engine: Any, op: Any) -> None:
    reach("answered")
    reach(f"answered-{op.name}")


def _evaluation(module: Any) -> None:
    around(module.Evaluation, "run", after=at("forward"))


def _adamw(module: Any) -> None:
    around(module, "adamw", after=at("optimizer"))


def _sample(module: Any) -> None:
    around(module.Sampling, "work", after=at("decode"))


def _database(module: Any) -> None:
    from sqlalchemy import Engine, event

    @event.listens_for(Engine, "commit")
    def commit(connection: Any) -> None:
        if connection.connection.dbapi_connection.in_transaction:  # there is something to commit
            reach("commit")

    around(module.Database, "run", before=lambda *_: disk_full(), after=at("committed"))


# `-m` runs `engine.kernel` as `__main__`, which no import hook sees; so it is not among these.
_WRAPPERS: dict[str, Callable[[Any], None]] = {
    "jupyter_tinker.engine.engine": _engine,
    "jupyter_tinker.engine.evaluation": _evaluation,
    "jupyter_tinker.engine.adamw": _adamw,
    "jupyter_tinker.engine.sample": _sample,
    "jupyter_tinker.server.database": _database,
}


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        wrapper = _WRAPPERS.get(name)
        if wrapper is None:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            around(spec.loader, "exec_module", after=wrapper)
        return spec


# Files, wherever they are written


def _rename(source: Any, target: Any, **kwargs: Any) -> None:
    _reach_file(target, "writing")


def _renamed(source: Any, target: Any, **kwargs: Any) -> None:
    _reach_file(target, "renamed")


def _reach_file(target: Any, what: str) -> None:
    path = os.fspath(target)
    for folder in ("snapshots", "checkpoints"):
        if isinstance(path, str) and f"/{folder}/" in path:
            reach(f"{folder}-{what}")


def disk_full() -> None:
    """A disk with no room for files larger than so many bytes; what is there already stays."""
    size = mode(f"disk-full-{_this_process()}")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    wanted = int(size) if size else hard
    if soft != wanted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (wanted, hard))


def _this_process() -> str:
    return "engine" if any("jupyter_tinker.engine" in word for word in sys.orig_argv) else "server"


_time = time.time


def _shifted() -> float:
    return _time() + float(mode("clock") or 0.0)


def install() -> None:
    sys.meta_path.insert(0, _Finder())
    for name in ("rename", "replace"):
        around(os, name, before=_rename, after=_renamed)
    time.time = _shifted


if _FOLDER:
    with contextlib.suppress(OSError):
        os.makedirs(_FOLDER, exist_ok=True)
    install()
