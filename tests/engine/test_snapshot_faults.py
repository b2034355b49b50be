"""Snapshots that cannot be kept or read: it is told, and the run is unharmed."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jupyter_tinker.engine import snapshot
from jupyter_tinker.wire import staging
from jupyter_tinker.wire.ops import OpError, SnapshotInfo

from . import snapshots
from .reference import Client, samples
from .snapshots import one_step, restore, state, take, wrap, wrapped_in

file, taken = snapshots.file, snapshots.taken


def test_unknown_runs(client: Client, file: Path) -> None:
    with pytest.raises(OpError, match="no run 'run'"):
        take(client, file)


@contextmanager
def little_room() -> Iterator[None]:
    """No file may be longer than some kilobytes, for this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(client: Client, file: Path, taken: SnapshotInfo) -> None:
    before, kept = state(client), file.read_bytes()
    for target in (file, file.with_name("4.safetensors")):
        with little_room(), pytest.raises(OpError, match=r"could not be written .* MiB") as caught:
            take(client, target)
        assert caught.value.category == "server"
    assert os.listdir(file.parent) == [file.name]
    assert file.read_bytes() == kept
    assert state(client) == before
    assert take(client, file).sha256 == taken.sha256


def test_a_folder_that_cannot_be_made(client: Client, tmp_path: Path) -> None:
    client.create()
    (tmp_path / "not-a-folder").touch()
    with pytest.raises(OpError, match=r"could not be written to .*not-a-folder") as caught:
        take(client, tmp_path / "not-a-folder" / "1")
    assert caught.value.category == "server"
    take(client, tmp_path / "folder" / "1")


def test_what_killed_writers_left_is_swept(
    client: Client, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    file.parent.mkdir(parents=True)
    mine = staging.fresh_file(file)
    with monkeypatch.context() as patch:
        patch.setattr(staging.os, "getpid", lambda: 2**22 + 7)  # above any process id
        dead = staging.fresh_file(file)
        aside = staging.fresh_file(tmp := file.parent.parent / "elsewhere")
        assert aside.parent == tmp.parent
    take(client, file)
    assert {path.name for path in file.parent.iterdir()} == {file.name, mine.name}
    assert not dead.exists()
    assert staging.sweep(file.parent.parent) == [aside]
    assert not aside.exists()
    assert mine.stat().st_mode & 0o077 == 0


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit of a weight": lambda data: flip(data, len(data) // 2),
    "a bit of the header": lambda data: flip(data, 40),
    "its length": lambda data: flip(data, 0),
    "truncated": lambda data: data[:-4],
    "longer": lambda data: data + b"\0" * 4,
    "empty": lambda data: b"",
}
UNREADABLE = ["its length", "truncated", "longer", "empty"]  # whatever SHA-256 is expected


@pytest.mark.parametrize("alive", [False, True])
@pytest.mark.parametrize(
    ("damage", "known"),
    [*((damage, False) for damage in DAMAGE), *((damage, True) for damage in UNREADABLE)],
)
def test_damage_is_told_and_the_run_unharmed(
    client: Client, file: Path, taken: SnapshotInfo, damage: str, known: bool, alive: bool
) -> None:
    data = DAMAGE[damage](file.read_bytes())
    file.write_bytes(data)
    one_step(client, 7)
    if not alive:
        client.unload()
    before = state(client) if alive else None
    with pytest.raises(OpError, match="is damaged") as caught:
        restore(client, file, hashlib.sha256(data).hexdigest() if known else taken.sha256)
    assert caught.value.category == "server"
    if alive:
        assert state(client) == before
    else:
        assert not client.engine.runs


def test_a_missing_file(client: Client, file: Path) -> None:
    with pytest.raises(OpError, match="there is no snapshot at") as caught:
        restore(client, file, "0" * 64)
    assert caught.value.category == "server"
    file.mkdir(parents=True)
    with pytest.raises(OpError, match="could not be read"):
        restore(client, file, "0" * 64)
    assert not client.engine.runs


def test_another_base_model(
    client: Client, models: Callable[[str], Path], file: Path, taken: SnapshotInfo
) -> None:
    other = Client(client.engine, models("tied"), "other")
    with pytest.raises(OpError, match="taken on 'tiny', whose configuration differs") as caught:
        restore(other, file, taken.sha256)
    assert caught.value.category == "server"
    before = state(client)
    client.base = str(models("tied"))
    with pytest.raises(OpError, match="configuration differs"):
        restore(client, file, taken.sha256)
    assert list(client.engine.runs) == ["run"]
    assert state(client) == before


FOREIGN: dict[str, tuple[Callable[..., Any], str]] = {
    "another format": (lambda t, about: about.update(format=2), "format 2 and this engine reads 1"),
    "a tensor less": (lambda t, about: t.pop("square"), "tensors are not those of its run"),
    "a tensor more": (lambda t, about: t.update(more=t["mean"].clone()), "tensors are not those"),
    "short moments": (lambda t, about: t.update(mean=t["mean"][:-1].clone()), "tensors are not"),
    "short gradients": (
        lambda t, about: t.update(gradients=t["gradients"][:-1].clone()),
        "tensors are not those",
    ),
    "another type": (lambda t, about: t.update(mean=t["mean"].double()), "tensors are not those"),
    "a rank too large": (lambda t, about: about["lora"].update(rank=10**9), "does not fit"),
    "a rank that is none": (lambda t, about: about["lora"].update(rank="4"), "is damaged"),
    "no shape": (lambda t, about: about.pop("lora"), "is damaged"),
    "no step": (lambda t, about: about.pop("step"), "is damaged"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_that_was_made_up_is_refused(
    client: Client, file: Path, taken: SnapshotInfo, case: str
) -> None:
    change, sentence = FOREIGN[case]
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["snapshot"])
    tensors = load_file(file)
    change(tensors, about)
    save_file(tensors, file, {"snapshot": json.dumps(about)})
    before = state(client)
    with pytest.raises(OpError, match=sentence) as caught:
        restore(client, file, hashlib.sha256(file.read_bytes()).hexdigest())
    assert caught.value.category == "server"
    assert state(client) == before


def test_safetensors_without_our_header(client: Client, file: Path) -> None:
    client.create()
    file.parent.mkdir(parents=True)
    save_file({"weights": client.weights.clone()}, file)
    with pytest.raises(OpError, match="is damaged"):
        restore(client, file, hashlib.sha256(file.read_bytes()).hexdigest())


@pytest.mark.parametrize("shape", [{}, {"rank": 7}], ids=["in place", "replaced"])
def test_an_interrupted_restore_leaves_the_run(
    client: Client,
    file: Path,
    taken: SnapshotInfo,
    shape: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.unload()
    client.create(**shape)
    one_step(client, 7)
    client.backward(samples(8))
    wrap(client)
    before = state(client)
    real = torch.Tensor.copy_
    own = client.weights

    def interrupted(tensor: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        # The moments, after the weights.
        if tensor.shape == source.shape and tensor.dim() == 1 and tensor is not own:
            patch.undo()
            raise KeyboardInterrupt
        return real(tensor, source)

    put = snapshot._put

    def first_weights(*arguments: Any) -> None:
        patch.setattr(torch.Tensor, "copy_", interrupted)
        put(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_put", first_weights)
        with pytest.raises(KeyboardInterrupt):
            restore(client, file, taken.sha256)
    assert state(client) == before
    run = client.engine.runs["run"]
    assert wrapped_in(run) == {run.adapter.name}
    assert restore(client, file, taken.sha256).step == 2
