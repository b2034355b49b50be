"""What all commands share: the server's configuration, and how they fail and print."""

from __future__ import annotations

import sys
from collections.abc import Generator
from textwrap import dedent, indent
from typing import NoReturn

from jupyter_core.application import JupyterApp, NoStart

from .. import __version__
from ..notebook.client import RequestFailed
from ..server.catalog import Catalog, UnknownModelError
from ..server.database import Database
from ..server.export import ExportError
from ..server.extension import TinkerExtension
from ..server.keys import InvalidKey
from ..server.model_folder import InvalidModelError
from ..server.pull import PullError


class Command(JupyterApp):
    """A command that reads the same configuration as the server."""

    version = __version__
    classes = [TinkerExtension, Catalog]  # noqa: RUF012 (traitlets' convention)
    usage = ""  # what stands behind the command's name

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override]
        for name in ("jupyter_server_config", "jupyter_tinker_config"):
            self.config_file_name = name
            super().load_config_file(suppress_errors)

    def start(self) -> None:
        super().start()
        try:
            self.act(self.extra_args)
        except (
            ExportError,
            InvalidKey,
            PullError,
            RequestFailed,
            UnknownModelError,
            InvalidModelError,
        ) as error:
            self.fail(str(error.args[0]))
        except KeyboardInterrupt:
            self.fail("stopped")

    def emit_description(self) -> Generator[str, None, None]:
        if self.usage:
            yield f"Usage: jupyter tinker {self.usage}"
            yield ""
        yield from super().emit_description()

    def emit_examples(self) -> Generator[str, None, None]:
        if self.examples:
            yield from (
                "Examples",
                "--------",
                "",
                indent(dedent(self.examples).strip(), "    "),
                "",
            )

    def act(self, arguments: list[str]) -> None:
        raise NoStart

    def fail(self, message: str) -> NoReturn:
        print(f"jupyter tinker: {message}", file=sys.stderr)
        sys.exit(1)

    def misused(self) -> NoReturn:
        self.fail(f"usage: jupyter tinker {self.usage}")

    def database(self) -> Database:
        return Database(TinkerExtension(config=self.config).database_url)

    def catalog(self) -> Catalog:
        return Catalog(parent=TinkerExtension(config=self.config))
