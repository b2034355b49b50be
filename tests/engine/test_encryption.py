"""Checkpoints that only their recipients can read."""

from __future__ import annotations

import base64
from pathlib import Path

import pyrage
import pytest

from jupyter_tinker.engine import checkpoint
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops, staging
from jupyter_tinker.wire.ops import OpError

from .reference import Client

# An ssh key that is easy to write: its point is the base point of the curve.
_BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + b"\x58" + b"\x66" * 31
SSH_KEY = f"ssh-ed25519 {base64.b64encode(_BLOB).decode()} someone"


def save(client: Client, folder: Path, recipients: list[str] | None) -> ops.SaveInfo:
    op = ops.SaveCheckpoint("run", "external_weights", str(folder), "tiny", recipients)
    return ops.SaveInfo(**client.engine.handle(op)[0])


def test_every_file_is_encrypted_and_holds_what_it_would_in_clear(
    client: Client, tmp_path: Path
) -> None:
    client.create()
    identity = pyrage.x25519.Identity.generate()
    save(client, tmp_path / "clear", None)
    info = save(client, tmp_path / "secret", [str(identity.to_public()), SSH_KEY])
    clear = {file.name: file.read_bytes() for file in (tmp_path / "clear").iterdir()}
    secret = {file.name: file.read_bytes() for file in (tmp_path / "secret").iterdir()}
    assert set(secret) == {f"{name}.age" for name in clear}
    assert info.size_bytes == sum(map(len, secret.values()))
    for name, data in clear.items():
        assert data not in secret[f"{name}.age"]
        assert pyrage.decrypt(secret[f"{name}.age"], [identity]) == data
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(secret["adapter_config.json.age"], [pyrage.x25519.Identity.generate()])


def test_nothing_readable_ever_touches_the_disk(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    seen: list[bytes] = []

    def die(path: Path) -> None:
        seen.extend(file.read_bytes() for file in path.parent.iterdir())
        raise KeyboardInterrupt  # after everything is written, before it has its name

    monkeypatch.setattr(staging, "sync", die)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        save(client, tmp_path / "secret", [recipient])
    assert len(seen) == 3
    assert all(data.startswith(b"age-encryption.org/v1") for data in seen)
    assert not (tmp_path / "secret").exists()


@pytest.mark.parametrize(
    ("recipients", "sentence"),
    [
        (["age1nonsense"], "'age1nonsense' in age_encryption_recipients"),
        (["ssh-rsa AAAA"], "no public key"),
        ([""], "no public key"),
        ([], "names 0"),
        ([SSH_KEY] * 21, "names 21"),
    ],
)
def test_who_is_no_recipient_is_told(
    client: Client, tmp_path: Path, recipients: list[str], sentence: str
) -> None:
    client.create()
    with pytest.raises(OpError, match=sentence) as refused:
        save(client, tmp_path / "x", recipients)
    assert refused.value.category == "user"
    assert list(tmp_path.iterdir()) == []


def test_an_encrypted_checkpoint_says_so_when_it_is_loaded(client: Client, tmp_path: Path) -> None:
    client.create()
    save(client, tmp_path / "x", [str(pyrage.x25519.Identity.generate().to_public())])
    with pytest.raises(OpError, match="is encrypted"):
        Client(Engine(), Path(client.base), "other").load(tmp_path / "x")


def test_only_what_a_dead_process_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = staging.fresh_folder(tmp_path / "run" / "weights" / "mine")
    with monkeypatch.context() as patch:
        patch.setattr(staging.os, "getpid", lambda: 2**22 + 7)  # above any process id
        dead = staging.fresh_folder(tmp_path / "run" / "weights" / "dead")
        patch.setattr(staging.platform, "node", lambda: "another machine")
        elsewhere = staging.fresh_folder(tmp_path / "run" / "weights" / "elsewhere")
        ancient = staging.fresh_folder(tmp_path / "run" / "weights" / "ancient")
    staging.os.utime(ancient, (0, 0))
    done = tmp_path / "run" / "weights" / "done"
    done.mkdir()
    assert set(staging.sweep(tmp_path, "*/*")) == {dead, ancient}
    assert set(done.parent.iterdir()) == {mine, elsewhere, done}
