"""Finds the Jupyter server that a kernel belongs to, and asks it things.

Knows nothing of IPython; the SDK finds the server by the same two environment variables.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

URL = "TINKER_BASE_URL"
KEY = "TINKER_API_KEY"


class ConnectionFailed(RuntimeError):
    """There is no Tinker server to talk to; the message says what to do."""


@dataclass(frozen=True)
class Connection:
    """A Tinker server and the key to it."""

    url: str  # ends in /tinker
    key: str

    def get(self, path: str) -> Any:
        """The JSON at `path` below the URL. Raises `ConnectionFailed`."""
        request = urllib.request.Request(f"{self.url}/{path}", headers={"X-API-Key": self.key})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ConnectionFailed(f"{self.url}: {_sentence(error)}") from None
        except (OSError, ValueError) as error:
            raise ConnectionFailed(
                f"{self.url} does not answer as a Tinker server: {error}"
            ) from None

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """A run's optimizer steps, oldest first, as the server keeps them."""
        steps: list[dict[str, Any]] = []
        path = f"runs/{urllib.parse.quote(run_id)}/steps"
        while page := self.get(f"{path}?after={steps[-1]['id'] if steps else 0}")["steps"]:
            steps += page
        return steps


def connect() -> Connection:
    """The server named by the environment, else the one that started this kernel; sets both
    variables, so that `tinker.ServiceClient()` finds it too. Raises `ConnectionFailed`."""
    found = _from_environment() or _from_parent()
    if found is None:
        raise ConnectionFailed(
            f"This kernel was not started by a Jupyter server with jupyter_tinker; set {URL} and "
            f"{KEY} to what `jupyter tinker` prints."
        )
    found.get("status")
    os.environ[URL], os.environ[KEY] = found.url, found.key
    return found


def _from_environment() -> Connection | None:
    url, key = os.environ.get(URL), os.environ.get(KEY)
    return Connection(url.rstrip("/"), key) if url and key else None


def _from_parent() -> Connection | None:
    # Imported here: it takes a second, and whoever names a server does without it.
    from jupyter_server.serverapp import list_running_servers

    parent = os.environ.get("JPY_PARENT_PID", "")
    for server in list_running_servers():
        if str(server["pid"]) == parent:
            token = server["token"] or "none-is-asked-for"
            return Connection(f"{server['url']}tinker", f"tml-{token}")
    return None


def _sentence(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}; is jupyter_tinker installed beside that server?"
