"""The command that takes a model along."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from jupyter_core.application import base_aliases, base_flags
from traitlets import Bool, Unicode

from ..server.catalog import Catalog
from ..server.checkpoints import Checkpoints
from ..server.database import Database
from ..server.export import Form, Source, export, find, source, warning
from ..server.extension import TinkerExtension
from ..server.run_store import RunStore
from .base import Command
from .progress import terminal_progress


class ExportCommand(Command):
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
            self.misused()
        form: Form = "merged" if self.merged else "gguf" if self.gguf else "adapter"
        if self.dtype and form == "adapter":
            self.fail("an adapter is copied as it is; --dtype goes with --merged or --gguf")
        out = Path(arguments[1])
        found = asyncio.run(self._find(arguments[0], base=form != "adapter"))
        with terminal_progress() as report:
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
            row = await find(text, checkpoints, RunStore(database))
        finally:
            await database.close()
        return source(row, checkpoints, Catalog(parent=extension), base=base)
