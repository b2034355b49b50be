"""Fetching models from the hub: only their weights, counted, and refused in sentences."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from jupyter_tinker.server.catalog import Catalog
from jupyter_tinker.server.pull import PullError, pull

from .test_catalog import make_cached


class FakeHub:
    """Stands in for huggingface_hub: a repository's files, or the error that asking gives."""

    def __init__(self, cache: Path, files: list[str], error: Exception | None = None) -> None:
        self.cache, self.files, self.error = cache, files, error
        self.asked: list[list[str]] = []

    def list_repo_files(self, name: str) -> list[str]:
        if self.error is not None:
            raise self.error
        return self.files

    def snapshot_download(self, name: str, *, allow_patterns: list[str], **options: Any) -> str:
        self.asked.append(allow_patterns)
        return str(self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / "abc123")

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)


def test_hub_id(models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make_cached(tmp_path / "hub", "org/name")
    hub = FakeHub(tmp_path / "hub", ["model.safetensors", "pytorch_model.bin"])
    hub.patch(monkeypatch)
    assert pull("org/name", models_dir, hub_cache=tmp_path / "hub").path == snapshot
    assert not any("bin" in pattern for patterns in hub.asked for pattern in patterns)
    catalog = Catalog(models_dir=str(models_dir), hub_cache=str(tmp_path / "hub"))
    assert catalog.resolve("org/name").path == snapshot


def test_the_bytes_of_a_hub_model_are_counted(
    models_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_cached(tmp_path / "hub", "org/name")
    hub = FakeHub(tmp_path / "hub", ["model.safetensors"])
    hub.patch(monkeypatch)
    fake = hub.snapshot_download

    def download(name: str, *, tqdm_class: Any, **options: Any) -> str:
        """Draws as the hub's library does."""
        with tqdm_class(name="a.bar", unit="B", unit_scale=True, total=0, mininterval=0) as bar:
            bar.total += 40_000_000
            for _ in tqdm_class(range(4), desc="Fetching 4 files"):
                bar.update(10_000_000)
            bar.set_description_str("Download complete")
        return fake(name, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    told: list[tuple[str, float | None]] = []
    report = lambda *stage: told.append(stage)  # noqa: E731
    pull("org/name", models_dir, report, hub_cache=tmp_path / "hub")
    weights = "Downloading the weights of org/name"
    assert (weights, None) in told
    assert (f"{weights}: 20.0 of 40.0 MB", 0.5) in told
    assert (f"{weights}: 40.0 of 40.0 MB", 1.0) in told
    assert not any("Fetching" in text for text, _ in told)
    assert capfd.readouterr() == ("", "")


def test_hub_model_without_safetensors(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(tmp_path / "hub", ["config.json", "pytorch_model.bin"])
    hub.patch(monkeypatch)
    with pytest.raises(PullError, match=r"no safetensors weights, only pytorch_model\.bin"):
        pull("org/name", models_dir)
    assert hub.asked == []


def test_hub_model_of_another_kind_is_refused_before_its_weights_come(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = make_cached(tmp_path / "hub", "org/bert")
    (snapshot / "config.json").write_text('{"architectures": ["BertModel"]}')
    hub = FakeHub(tmp_path / "hub", ["model.safetensors"])
    hub.patch(monkeypatch)
    with pytest.raises(PullError, match="BertModel"):
        pull("org/bert", models_dir)
    assert len(hub.asked) == 1


class _Response:
    """As much of an HTTP response as the hub's errors keep."""

    headers: dict[str, str] = {}  # noqa: RUF012
    request = None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("403", response=_Response()), "is gated: accept its terms"),
        (errors.RepositoryNotFoundError("404", response=_Response()), "The hub has no model"),
        (errors.HfHubHTTPError("500", response=_Response()), "The hub refused org/name: 500"),
        (errors.OfflineModeIsEnabled("offline mode is enabled"), "offline mode is enabled"),
        (ConnectionError("no route"), "could not be fetched: no route"),
    ],
)
def test_hub_errors_are_sentences(
    models_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    FakeHub(tmp_path, [], error).patch(monkeypatch)
    with pytest.raises(PullError, match=message) as raised:
        pull("org/name", models_dir)
    assert "Without the hub there is: smollm2-135m" in str(raised.value)


def test_hub_offline_for_real(models_dir: Path) -> None:
    code = "import sys, pathlib; from jupyter_tinker.server.pull import *\n"
    code += "try: pull('org/name', pathlib.Path(sys.argv[1]))\n"
    code += "except PullError as error: print(error)"
    answer = subprocess.check_output(
        [sys.executable, "-c", code, str(models_dir)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        text=True,
    )
    assert "org/name" in answer
    assert "Without the hub there is: smollm2-135m" in answer
