"""One server at a time uses a state directory: two would run the same requests."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


class DataLock:
    """The lock of a state directory. It is let go of when its process ends, however that ends."""

    def __init__(self, state_dir: Path) -> None:
        self._lock = FileLock(state_dir / "server.lock", thread_local=False)
        self._about = state_dir / "server.json"
        self._fault: OSError | None = None  # why there can be no lock

    def take(self, about: str) -> bool:
        """Whether this process has the lock now; `about` tells others whose it is."""
        if self._lock.is_locked:
            return True
        self._fault = None
        try:
            self._about.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.acquire(blocking=False)
            self._about.write_text(json.dumps({"pid": os.getpid(), "server": about}))
        except Timeout:
            return False
        except OSError as error:
            self._fault = error
            self._lock.release()
            return False
        return True

    def refusal(self) -> str:
        """Why this server does nothing, in a sentence."""
        if self._fault is not None:
            return (
                f"{self._about.parent} cannot hold this server's data "
                f"({self._fault.strerror}: {self._fault.filename}). Make it a folder that the user "
                "who runs this server may write to, or name another by TinkerExtension.state_dir."
            )
        holder = self.holder()
        return (
            f"Another Jupyter server uses {self._about.parent} already: process "
            f"{holder.get('pid', 'unknown')}, {holder.get('server', 'at an unknown address')}. Use "
            "that one, end it, or give this one a folder of its own by TinkerExtension.state_dir."
        )

    def holder(self) -> dict[str, Any]:
        """What the one that has the lock says of itself: its `pid`, and `server`, where it is."""
        with suppress(OSError, ValueError):
            return dict(json.loads(self._about.read_text()))
        return {}

    def release(self) -> None:
        self._lock.release()
