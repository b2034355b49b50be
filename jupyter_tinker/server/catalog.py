"""Which base models there are, and in which folder each of them lies.

A model is a folder in Hugging Face layout with safetensors weights. It comes from
`jupyter tinker pull`, from an alias in the configuration, from the Hugging Face cache, or, for a
person whom Jupyter itself let in, from any local folder. Nothing here downloads, and nothing opens
a weight.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from jupyter_core.paths import jupyter_data_dir
from traitlets import Bool, Dict, Unicode, default
from traitlets.config import LoggingConfigurable

from .model_folder import (
    BaseModel,
    InvalidModelError,
    as_folder,
    hub_snapshot,
    inspect_folder,
    inspect_pulled,
    is_model_name,
)

__all__ = ["BaseModel", "Catalog", "InvalidModelError", "UnknownModelError", "format_models"]

_LISTING_SECONDS = 5.0


class UnknownModelError(LookupError):
    """No usable base model goes by the name that was asked for; the message lists what there is."""


class Catalog(LoggingConfigurable):
    """Finds base models by name."""

    models_dir = Unicode(
        help="Folder of the models that `jupyter tinker pull` fetched. "
        "Default: tinker/models in Jupyter's data directory.",
    ).tag(config=True)
    hub_cache = Unicode(
        help="Folder of the Hugging Face cache whose complete models are offered too; a folder "
        "that does not exist offers none. Default: where huggingface_hub keeps its cache.",
    ).tag(config=True)
    aliases = Dict(
        value_trait=Unicode(),
        key_trait=Unicode(),
        help="Further names for models: a name that clients may ask for, and the name or the local "
        "folder of the model that they are served. A script that says meta-llama/Llama-3.2-1B can "
        'so be given a local folder: {"meta-llama/Llama-3.2-1B": "/data/llama-3.2-1b"}. '
        "An alias goes before a model of the same name.",
    ).tag(config=True)
    allow_paths = Bool(
        True,
        help="Whether a person whom Jupyter itself let in may name any local folder as the base "
        "model. Who comes with a Tinker key never may.",
    ).tag(config=True)

    _listing: tuple[float, list[BaseModel]] | None = None

    @default("models_dir")
    def _default_models_dir(self) -> str:
        return str(Path(jupyter_data_dir()) / "tinker" / "models")

    @default("hub_cache")
    def _default_hub_cache(self) -> str:
        from huggingface_hub import constants

        return constants.HF_HUB_CACHE

    @property
    def _models_dir(self) -> Path:
        return Path(self.models_dir).expanduser().absolute()

    def models(self) -> list[BaseModel]:
        """Every model that can be asked for by name: aliases, pulled ones, the hub cache's.

        Looked up at most every few seconds, because clients ask often.
        """
        now = time.monotonic()
        if self._listing is None or now - self._listing[0] > _LISTING_SECONDS:
            self._listing = (now, list(self._look_up_all()))
        return list(self._listing[1])

    def resolve(self, name: str, *, allow_path: bool = False) -> BaseModel:
        """The model that `name` stands for.

        `allow_path` says that the person asking may name a local folder, which `allow_paths` can
        still forbid. Raises `UnknownModelError`.
        """
        try:
            return replace(self._find(name, allow_path and self.allow_paths), name=name)
        except (LookupError, ValueError, OSError) as error:
            raise UnknownModelError(f"{error} {self._what_there_is()}") from error

    def _find(self, name: str, allow_path: bool) -> BaseModel:
        target, seen = name, [name]
        while target in self.aliases:
            target = self.aliases[target]
            if target in seen:
                raise LookupError(f"The aliases go round in a circle: {' -> '.join(seen)}.")
            seen.append(target)
        if allow_path or len(seen) > 1:  # an alias is the owner's word
            folder = as_folder(target)
            if folder is not None:
                return inspect_folder(folder, name)
        model = self._find_by_name(target) if is_model_name(target) else None
        if model is None:
            through = f" (an alias of {target!r})" if target != name else ""
            raise LookupError(f"There is no base model {name!r}{through} here.")
        return model

    def _find_by_name(self, name: str) -> BaseModel | None:
        if "/" not in name and (self._models_dir / name).is_dir():
            return inspect_pulled(self._models_dir / name)
        # The cache first: its weights are the hub's own, those of a package may be rounded.
        snapshot, problem = hub_snapshot(Path(self.hub_cache), name), None
        if snapshot is not None:
            try:
                return inspect_folder(snapshot, name, hub_id=name)
            except InvalidModelError as error:  # often there is only somebody's tokenizer
                problem = error
        pulled = next((model for model in self._pulled() if model.hub_id == name), None)
        if pulled is None and problem is not None:
            raise problem
        return pulled

    def _look_up_all(self) -> Iterator[BaseModel]:
        names = set(self.aliases)
        for alias in self.aliases:
            try:
                yield replace(self._find(alias, allow_path=False), name=alias)
            except (LookupError, ValueError, OSError) as error:
                self.log.warning("The alias %r is not offered: %s", alias, error)
        for model in [*self._pulled(), *self._in_hub_cache()]:
            if model.name not in names:
                names.add(model.name)
                yield model

    def _pulled(self) -> Iterator[BaseModel]:
        for folder in _folders(self._models_dir):
            if is_model_name(folder.name):
                try:
                    yield inspect_pulled(folder)
                except (ValueError, OSError) as error:
                    self.log.warning("A pulled model is not offered: %s", error)

    def _in_hub_cache(self) -> Iterator[BaseModel]:
        # The layout is the one that huggingface_hub documents; its own scan_cache_dir looks at
        # every blob of every model and data set, which takes seconds in a full cache.
        cache = Path(self.hub_cache)
        for folder in _folders(cache):
            if folder.name.startswith("models--"):
                name = folder.name.removeprefix("models--").replace("--", "/")
                snapshot = hub_snapshot(cache, name)
                try:
                    if snapshot is not None:
                        yield inspect_folder(snapshot, name, hub_id=name)
                except (ValueError, OSError) as error:
                    self.log.debug("Not offered from the Hugging Face cache: %s", error)

    def _what_there_is(self) -> str:
        names = [model.name for model in self.models()]
        there_is = f"There is: {', '.join(names)}." if names else "There is none yet."
        return f"{there_is} `jupyter tinker pull NAME` fetches one."


def format_models(models: Sequence[BaseModel]) -> str:
    """The models as a table for the terminal."""
    rows = [("NAME", "CONTEXT", "SIZE", "FOLDER")]
    for model in models:
        size = f"{model.size_on_disk / 1e9:.2f} GB"
        rows.append((model.name, str(model.context_length or "?"), size, str(model.path)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(entry for entry in parent.iterdir() if entry.is_dir())
    except OSError:
        return []
