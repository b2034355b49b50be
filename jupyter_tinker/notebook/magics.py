"""`%load_ext jupyter_tinker`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .connection import ConnectionFailed, connect

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load(shell: InteractiveShell) -> None:
    """Find this kernel's server and say so in a line; put it into the namespace as
    `tinker_server`."""
    try:
        server = connect()
    except ConnectionFailed as error:
        print(error)
        return
    shell.push({"tinker_server": server})
    engine = server.get("status")["status"]
    state = engine["reason"] if engine else "the engine starts with the first run"
    print(f"Tinker at {server.url}: {state}")
