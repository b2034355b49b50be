"""The engine's process: which program it is, in which environment, and at which address.

Knows nothing of operations, nor of when an engine is started.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

import zmq
from jupyter_client.connect import port_names
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.paths import jupyter_runtime_dir
from traitlets.config import LoggingConfigurable

# The address of a Unix socket must fit into 107 bytes; the port's number and a dash come behind.
_LONGEST_IPC_PREFIX = 90
_PREFIX = "tinker-engine-"  # of our files in the runtime directory; the server's process id follows
_numbers = itertools.count()

# glibc keeps what is freed below what is in use, save what has a mapping of its own; MKL keeps
# whatever it had for a product.
_GIVE_BACK = {
    "MKL_DISABLE_FAST_MM": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
}


class EngineKernelManager(AsyncKernelManager):
    """A kernel manager that always starts our engine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # -P: modules must not be taken from the server's working directory.
        argv = [sys.executable, "-P", "-m", "jupyter_tinker.engine.kernel"]
        return KernelSpec(
            argv=[*argv, "-f", "{connection_file}"],
            display_name="Tinker engine",
            language="python",
            metadata={"supported_encryption": "curve"},
        )


def environment(*, low_memory: bool) -> dict[str, str]:
    """The variables of an engine's process."""
    return {
        # For how long threads spin before they sleep. By default so long that the engine is
        # ten times as slow as soon as a notebook's kernel computes on the same cores; without
        # any, sampling is up to twice as slow alone. docs/performance.md has the figures.
        "GOMP_SPINCOUNT": "4000",
        **(_GIVE_BACK if low_memory else {}),
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # the catalogue names local folders only
    }


class EngineAddress:
    """Where the engines of a server are, one after another.

    All have one address and one key, so that notebooks stay connected.
    """

    def __init__(self) -> None:
        self._name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self._key = uuid.uuid4().hex.encode()
        self._socket_dir: Path | None = None

    def manager(self, parent: LoggingConfigurable) -> EngineKernelManager:
        """Of an engine that is to be started at this address, which nobody else has."""
        runtime = Path(jupyter_runtime_dir())
        runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(runtime)
        connection_file = str(runtime / f"{self._name}.json")
        if not zmq.has("ipc"):
            # Encrypted and authenticated: other users of the machine can reach a TCP port.
            encryption = "required" if zmq.has("curve") else "disabled"
            return EngineKernelManager(
                parent=parent, connection_file=connection_file, transport_encryption=encryption
            )
        prefix = self._socket_prefix(runtime)
        manager = EngineKernelManager(
            parent=parent, connection_file=connection_file, transport="ipc", ip=prefix
        )
        manager.session.key = self._key
        for number, name in enumerate(port_names, 1):
            setattr(manager, name, number)
            Path(f"{prefix}-{number}").unlink(missing_ok=True)
        return manager

    def _socket_prefix(self, runtime: Path) -> str:
        prefix = str(runtime / self._name)
        if len(prefix.encode()) <= _LONGEST_IPC_PREFIX:
            return prefix
        self._socket_dir = self._socket_dir or Path(tempfile.mkdtemp(prefix="tinker-"))
        return str(self._socket_dir / "engine")

    def remove(self) -> None:
        """No further engine is started."""
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)


def _sweep(runtime: Path) -> None:
    """Remove the connection files and sockets of servers that were killed."""
    for file in runtime.glob(f"{_PREFIX}*"):
        pid = file.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdecimal() and not _alive(int(pid)):
            file.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True
