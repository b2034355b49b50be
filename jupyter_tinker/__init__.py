"""Tinker, the training API, on the Jupyter server you already run."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from .server.extension import TinkerExtension

    return [{"module": "jupyter_tinker", "app": TinkerExtension}]
