"""Fetches a model from the Hugging Face hub into its cache; what goes wrong becomes a sentence."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..wire.progress import Progress as Bytes
from .model_folder import InvalidModelError, check_architecture

Progress = Callable[[str, float | None], None]  # what happens now; how much is done, 0 to 1

_TEXTS = ["*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]
_WEIGHTS = ["model.safetensors", "model-*.safetensors"]


class HubError(RuntimeError):
    """The hub did not give a model; the message says why."""


def fetch(name: str, cache: Path | None, report: Progress) -> Path:
    """The folder of the hub's model `name`, without anything pickled, downloaded if need be.

    Raises `HubError`, or `InvalidModelError` for a model that cannot be trained.
    """
    from huggingface_hub import HfApi, snapshot_download

    def download(patterns: list[str], text: str) -> Path:
        report(text, None)
        folder = snapshot_download(
            name,
            cache_dir=cache,
            allow_patterns=patterns,
            ignore_patterns="*/*",
            tqdm_class=_counting(text, report),
        )
        return Path(folder)

    with _as_sentences(name):
        report(f"Looking up {name}", None)
        _check_listing(name, HfApi().list_repo_files(name))
        # The config first: a model of the wrong kind is refused before its gigabytes come.
        check_architecture(download(_TEXTS, f"Downloading the texts of {name}"))
        folder = download(_TEXTS + _WEIGHTS, f"Downloading the weights of {name}")
    report(f"{name} is ready", 1.0)
    return folder


def _counting(text: str, report: Progress) -> Any:
    """A kind of bar for the hub's library, which draws one of its own: it counts bytes for ours."""
    from tqdm.std import tqdm

    furthest = 0.0

    class Counting(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def display(self, *_: Any, **__: Any) -> None:
            nonlocal furthest
            if self.unit != "B" or not self.total:  # it counts files
                return
            part = min(1.0, self.n / self.total)
            if part > furthest:  # there are bars for what is fetched and for what is written
                furthest = part
                report(str(Bytes(text, int(self.n), int(self.total), "bytes")), part)

    return Counting


def _check_listing(name: str, files: list[str]) -> None:
    if "model.safetensors" in files or "model.safetensors.index.json" in files:
        return
    others = ", ".join(file for file in files if file.endswith((".bin", ".pt", ".pth", ".gguf")))
    raise HubError(f"{name} has no safetensors weights{f', only {others}' if others else ''}.")


@contextmanager
def _as_sentences(name: str) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{name} is gated: accept its terms on its page of the hub, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"The hub has no model {name}, or it is private and needs `hf auth login`."
        ) from error
    except errors.HfHubHTTPError as error:
        raise HubError(f"The hub refused {name}: {error}.") from error
    except (InvalidModelError, HubError):
        raise
    except (OSError, ValueError) as error:
        raise HubError(f"{name} could not be fetched: {error}.") from error
    except Exception as error:  # the HTTP client's own, httpx or httpx2 by the hub's version
        if not type(error).__module__.startswith("httpx"):
            raise
        raise HubError(f"The hub cannot be reached for {name}: {error}.") from error
