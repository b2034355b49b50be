"""How long a notebook waits for `%load_ext jupyter_tinker`, in a kernel that has run nothing."""

from __future__ import annotations

import os
from pathlib import Path

from jupyter_client.manager import KernelManager

from tests.bench import ours
from tests.bench.loops import ROOT
from tests.bench.noise import Noise
from tests.bench.report import Report

_KERNELS = 7
_TIMED = """\
import time as _time
_began = _time.perf_counter()
import jupyter_tinker
_imported = _time.perf_counter() - _began
get_ipython().run_line_magic("load_ext", "jupyter_tinker")
_loaded = _time.perf_counter() - _began
"""


def load(model: Path, report: Report) -> None:
    """Until the line that names the server, which is asked for its state."""
    with ours.server(model) as server:
        env = {"TINKER_BASE_URL": server.url, "TINKER_API_KEY": server.key}
        _seconds(env)  # compiled, and read from the disk
        report.patience.wait()
        with Noise() as noise:
            times = [_seconds(env) for _ in range(_KERNELS)]
    imported, loaded = ([1e3 * seconds for seconds in both] for both in zip(*times, strict=True))
    what = "%load_ext jupyter_tinker, in a fresh kernel"
    report.add("load", what, loaded, "ms", goal="< 500", others=noise.cores)
    report.add("load", "  of which the import", imported, "ms")


def _seconds(env: dict[str, str]) -> tuple[float, float]:
    """Of the import, and of all."""
    manager = KernelManager(transport="ipc")
    manager.start_kernel(env={"PYTHONPATH": str(ROOT), **os.environ, **env})
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        wanted = {"imported": "_imported", "loaded": "_loaded"}
        reply = client.execute(_TIMED, user_expressions=wanted, reply=True, timeout=60)
        told = reply["content"]["user_expressions"]
        imported, loaded = (float(told[name]["data"]["text/plain"]) for name in wanted)
        return imported, loaded
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
