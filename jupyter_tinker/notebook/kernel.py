"""Which kernel this is, and that the runs of its clients say so.

The SDK gives its sessions the tags that the environment variable TINKER_TAGS names, and the server
tells them of every run. So a panel knows the runs of its own notebook.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

TAGS = "TINKER_TAGS"  # read by the SDK; commas between
_TAG = "jupyter-kernel="


def kernel_id() -> str:
    """The id by which Jupyter's server knows this process; empty if it is no kernel."""
    # Not imported here: what is no kernel has not imported it, and need not.
    module: Any = sys.modules.get("ipykernel.kernelapp")
    if module is None or not module.IPKernelApp.initialized():
        return ""
    # Jupyter's server names the file after the kernel; other homes name theirs, at least, uniquely.
    file = Path(module.IPKernelApp.instance().connection_file)
    return file.stem.removeprefix("kernel-")


def tag_sessions() -> None:
    """Let sessions that begin from now on, here and in processes that start here, be known as this
    kernel's. Tags that somebody else has set stay; outside a kernel nothing is set."""
    if kernel := kernel_id():
        os.environ[TAGS] = ",".join([*_others(), tag_of(kernel)])


def untag_sessions() -> None:
    """Take the tag away again."""
    if not kernel_id():
        return
    if others := _others():
        os.environ[TAGS] = ",".join(others)
    else:
        os.environ.pop(TAGS, None)


def tag_of(kernel: str) -> str:
    """The tag of sessions that began in a kernel."""
    return f"{_TAG}{kernel}"


def _others() -> list[str]:
    tags = os.environ.get(TAGS, "").split(",")
    return [tag for tag in tags if tag and not tag.startswith(_TAG)]
