"""`jupyter tinker`: a server without a front end, and commands about models, keys and runs."""

from __future__ import annotations

from .. import _fast_start  # noqa: F401 (imported first, for its effect)
from .app import TinkerApp, main
from .export import ExportCommand

__all__ = ["ExportCommand", "TinkerApp", "main"]
