"""An authorizer for a server under test."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth import Authorizer


class NothingOfTinker(Authorizer):
    """Allows everything but this project's resource."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return resource != "tinker"
