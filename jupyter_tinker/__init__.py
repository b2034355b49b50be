"""Tinker, the training API, on the Jupyter server you already run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from .server.extension import TinkerExtension

    return [{"module": "jupyter_tinker", "app": TinkerExtension}]


def load_ipython_extension(shell: InteractiveShell) -> None:
    """`%load_ext jupyter_tinker`: `tinker.ServiceClient()` finds this kernel's server."""
    from .notebook.magics import load

    load(shell)
