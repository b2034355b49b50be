"""The program: which commands there are, and what happens without one."""

from __future__ import annotations

import sys
from typing import Any

from jupyter_core.application import JupyterApp

from .. import __version__
from ..server.extension import TinkerExtension
from .console import ConsoleCommand
from .export import ExportCommand
from .gc import GcCommand
from .keys import KeyCommand
from .models import ModelsCommand, PullCommand
from .runs import RunsCommand
from .steering import STEERING
from .watch import WatchCommand

_SERVE_HELP = "Without a command: start a Jupyter server with nothing but the Tinker API."


class TinkerApp(JupyterApp):
    name = "jupyter-tinker"
    version = __version__
    description = f"Tinker, the training API, on a Jupyter server. {_SERVE_HELP}"
    subcommands = {  # noqa: RUF012 (traitlets' convention)
        "models": (ModelsCommand, ModelsCommand.description),
        "pull": (PullCommand, PullCommand.description),
        "key": (KeyCommand, KeyCommand.description),
        "runs": (RunsCommand, RunsCommand.description),
        "watch": (WatchCommand, WatchCommand.__doc__),
        "console": (ConsoleCommand, ConsoleCommand.__doc__),
        **{name: (command, command.__doc__) for name, command in STEERING.items()},
        "gc": (GcCommand, GcCommand.__doc__),
        "export": (ExportCommand, ExportCommand.__doc__),
    }


_ABOUT = ("-h", "--help", "--help-all", "--version")


def main(argv: list[str] | None = None) -> Any:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and (arguments[0] in TinkerApp.subcommands or arguments[0] in _ABOUT):
        return TinkerApp.launch_instance(arguments)
    return TinkerExtension.launch_instance(arguments)
