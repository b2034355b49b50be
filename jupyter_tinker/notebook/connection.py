"""Finds the Jupyter server that a kernel or a terminal belongs to.

Knows nothing of IPython; the SDK finds the server by the same two environment variables.
"""

from __future__ import annotations

import os
from typing import Any

from .client import Client, RequestFailed
from .servers import running_servers

URL = "TINKER_BASE_URL"
KEY = "TINKER_API_KEY"
_NAME_IT = f"set {URL} and {KEY} to what `jupyter tinker` prints."


class ConnectionFailed(RequestFailed):
    """There is no Tinker server to talk to; the message says what to do."""


def connect(url: str | None = None, key: str | None = None, *, timeout: float = 30.0) -> Client:
    """A server that answers: the one at `url`, else the one that the environment names, else the
    one that started this kernel, else the only one that runs here.

    One that was looked for is put into the environment, so that `tinker.ServiceClient()` finds it
    too. Raises `ConnectionFailed`.
    """
    named = find(url, key)
    try:
        named.get("status", timeout=timeout)
    except RequestFailed as error:
        raise ConnectionFailed(str(error), error.status) from None
    if url is None and key is None:
        os.environ[URL], os.environ[KEY] = named.url, named.key
    return named


def find(url: str | None = None, key: str | None = None) -> Client:
    """The server that `connect` would ask. Raises `ConnectionFailed` if there is none."""
    url, key = url or os.environ.get(URL), key or os.environ.get(KEY)
    if url and key:
        return Client(url.strip().rstrip("/"), key.strip())
    if url:
        raise ConnectionFailed(f"There is no key to {url}: set {KEY} to one that opens it.")
    server = _running()
    token = server["token"] or "none-is-asked-for"
    return Client(f"{server['url']}tinker", key or f"tml-{token}")


def _running() -> dict[str, Any]:
    servers = running_servers()
    parent = os.environ.get("JPY_PARENT_PID")
    if parent is not None:
        servers = [server for server in servers if str(server["pid"]) == parent]
        nobody = f"This kernel was not started by a Jupyter server with jupyter_tinker; {_NAME_IT}"
    else:
        # Jupyter's terminals are told which server they belong to.
        own = [s for s in servers if s["url"] == os.environ.get("JUPYTER_SERVER_URL")]
        servers = own or servers
        nobody = f"No Jupyter server runs here; {_NAME_IT}"
    if not servers:
        raise ConnectionFailed(nobody)
    if len(servers) > 1:
        urls = ", ".join(server["url"] for server in servers)
        raise ConnectionFailed(f"Several Jupyter servers run here, {urls}; {_NAME_IT}")
    return servers[0]
