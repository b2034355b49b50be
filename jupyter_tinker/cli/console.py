"""The command that opens a console on the engine's kernel."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ..notebook.session import attach
from .remote import ServerCommand


class ConsoleCommand(ServerCommand):
    """Open a console on the engine's kernel, to look inside the model that is training."""

    name = "jupyter-tinker-console"
    description = """Open a console on the engine's kernel, which is started if need be, to look
    inside the model that is training: `engine` in it shows runs, weights, gradients and attention.

    It takes the Jupyter server's token; a Tinker key opens no kernels. Without the package
    jupyter-console, the command is printed that opens one where it is installed."""
    usage = "console"

    def act(self, arguments: list[str]) -> None:
        if arguments:
            self.misused()
        found = attach(self.client())
        file = found["connection_file"]
        if not Path(file).is_file():
            self.fail(f"the engine is on another machine; say there: {found['command']}")
        if find_spec("jupyter_console") is None:
            print(found["command"])
            return
        os.execv(sys.executable, [sys.executable, "-m", "jupyter_console", "--existing", file])
