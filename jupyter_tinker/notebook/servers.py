"""Which Jupyter servers run here, by the files that they leave for others to find them.

The same as `jupyter_server.serverapp.list_running_servers`, whose import takes most of a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def running_servers() -> list[dict[str, Any]]:
    """What running servers say of themselves: `url` (ending in /), `token` and `pid`, and more."""
    # Imported here: who names a server needs neither.
    import psutil
    from jupyter_core.paths import jupyter_runtime_dir

    found = _left_in(Path(jupyter_runtime_dir()))
    return [server for server in found if psutil.pid_exists(server["pid"])]


def _left_in(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("jpserver-*.json")):
        try:
            server = json.loads(file.read_text(encoding="utf-8"))
            whole = isinstance(server["pid"], int) and server["url"] and "token" in server
        except (OSError, ValueError, TypeError, KeyError):
            continue  # half written, or another's
        if whole:
            yield server
