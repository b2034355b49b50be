"""Tinker, the training API, on the Jupyter server you already run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from .notebook.panel import Panel
    from .notebook.runs import Run, compare, run, runs

__all__ = ["Panel", "Run", "__version__", "compare", "run", "runs"]

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from .server.extension import TinkerExtension

    return [{"module": "jupyter_tinker", "app": TinkerExtension}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "jupyter-tinker"}]


def load_ipython_extension(shell: InteractiveShell) -> None:
    """`%load_ext jupyter_tinker`: `tinker.ServiceClient()` finds this kernel's server."""
    from .notebook.magics import load

    load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    from .notebook.magics import unload

    unload(shell)


def __getattr__(name: str) -> Any:
    """`jupyter_tinker.runs()`, `.Panel` and the like; imported when they are first used."""
    if name == "Panel":
        from .notebook.panel import Panel

        return Panel
    if name not in ("Run", "compare", "run", "runs"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .notebook import runs as module

    return getattr(module, name)
