"""Checkpoints: PEFT's layout, exact continuation, whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jupyter_tinker.engine import checkpoint
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import staging
from jupyter_tinker.wire.ops import AdamParams, OpError

from .reference import Client, load_peft, samples
from .scarce import failures

Models = Callable[[str], Path]

ADAM = AdamParams(learning_rate=1e-2, eps=1e-8)


def train(client: Client, seeds: range) -> None:
    for seed in seeds:
        client.backward(samples(seed))
        client.step(ADAM)


@pytest.fixture
def saved(client: Client, tmp_path: Path) -> Path:
    """A checkpoint after three steps of the client's run."""
    client.create()
    train(client, range(3))
    client.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt_neox"])
def test_peft_loads_it_with_the_same_numbers(
    engine: Engine, models: Models, tmp_path: Path, kind: str
) -> None:
    client = Client(engine, models(kind))
    client.create(rank=3)
    train(client, range(2))
    client.save(tmp_path / "adapter", "external_weights")
    model = load_peft(models(kind), tmp_path / "adapter").eval()
    for sample, lp in zip(samples(5), client.forward(samples(5)).logprobs, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sample.tokens])).logits[0]
        expected = torch.log_softmax(logits, -1).gather(
            1, torch.from_numpy(sample.targets)[:, None]
        )
        np.testing.assert_allclose(lp, expected[:, 0].numpy(), atol=1e-4)


def test_the_files_are_those_that_peft_writes_itself(
    client: Client, saved: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(client.base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        model = PeftModel.from_pretrained(base, saved)
    model.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    own = load_file(saved / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert config["lora_alpha"] == 32
    assert config["base_model_name_or_path"] == "tiny"
    assert config["peft_type"] == "LORA"


def test_target_modules_match_no_more_than_was_trained(client: Client, tmp_path: Path) -> None:
    client.create(train_mlp=False, train_unembed=False)
    client.save(tmp_path / "attention")
    model = load_peft(Path(client.base), tmp_path / "attention")
    trained = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(trained) == len(load_file(tmp_path / "attention" / "adapter_model.safetensors"))
    assert all("self_attn" in name for name in trained)


@pytest.mark.parametrize("same_engine", [True, False])
def test_it_goes_on_bit_for_bit(client: Client, saved: Path, same_engine: bool) -> None:
    other = Client(client.engine if same_engine else Engine(), Path(client.base), "other")
    info = other.load(saved, optimizer=True)
    assert info.step == 3
    assert info.lora == client.engine.runs["run"].lora
    train(client, range(3, 6))
    train(other, range(3, 6))
    assert torch.equal(client.weights, other.weights)
    assert client.step().step == other.step().step == 7


def test_loading_into_the_living_run_goes_back(client: Client, saved: Path) -> None:
    then = client.weights.clone()
    train(client, range(3, 6))
    after_six = client.weights.clone()
    client.backward(samples(50))  # gradients of weights that are about to go
    info = client.load_weights(saved, optimizer=True)
    assert info.step == 3
    assert torch.equal(client.weights, then)
    assert not client.gradients.any()
    train(client, range(3, 6))
    assert torch.equal(client.weights, after_six)


@pytest.mark.parametrize("optimizer", [True, False])
def test_where_memory_runs_out_the_living_run_is_as_it_was(
    client: Client, saved: Path, optimizer: bool
) -> None:
    then = client.weights.clone()
    train(client, range(3, 6))
    client.backward(samples(50))
    run = client.engine.runs["run"]

    def state() -> list[torch.Tensor]:
        own = run.optimizer
        flat = (run.adapter.weights, run.adapter.gradients, own.mean, own.square, own.count)
        return [tensor.clone() for tensor in flat]

    before, times = state(), 0
    for _ in failures(lambda: client.load_weights(saved, optimizer=optimizer)):
        times += 1
        assert run.step == 6
        assert all(map(torch.equal, before, state()))
    assert times > 1
    assert torch.equal(client.weights, then)
    assert run.step == (3 if optimizer else 0)


def test_without_the_optimizer_it_starts_anew(client: Client, saved: Path) -> None:
    other = Client(client.engine, Path(client.base), "other")
    assert other.load(saved).step == 0
    assert torch.equal(client.weights, other.weights)
    assert not client.engine.runs["other"].optimizer.mean.any()
    train(other, range(3, 4))
    # The first step of a new Adam is the learning rate times the sign of the gradient.
    moved = (other.weights - client.weights).abs()
    assert float(moved.max()) == pytest.approx(ADAM.learning_rate, rel=1e-3)
    assert other.step().step == 2


def test_a_run_saved_before_its_first_step(client: Client, tmp_path: Path) -> None:
    client.create()
    client.save(tmp_path / "zero")
    other = Client(client.engine, Path(client.base), "other")
    assert other.load(tmp_path / "zero", optimizer=True).step == 0
    train(client, range(2))
    train(other, range(2))
    assert torch.equal(client.weights, other.weights)


def test_replacing_takes_the_new_and_leaves_nothing_behind(client: Client, saved: Path) -> None:
    train(client, range(3, 4))
    info = client.save(saved)
    assert info.step == 4
    assert info.size_bytes == sum(f.stat().st_size for f in saved.iterdir())
    assert os.listdir(saved.parent) == ["saved"]
    other = Client(client.engine, Path(client.base), "other")
    assert other.load(saved, optimizer=True).step == 4


@pytest.mark.parametrize("kind", ["sampler_weights", "external_weights"])
def test_the_optimizer_is_only_saved_with_weights(
    client: Client, tmp_path: Path, kind: checkpoint.CheckpointKind
) -> None:
    client.create()
    client.save(tmp_path / "x", kind)
    assert not (tmp_path / "x" / "optimizer.safetensors").exists()
    other = Client(client.engine, Path(client.base), "other")
    with pytest.raises(OpError, match="no optimizer state") as caught:
        other.load(tmp_path / "x", optimizer=True)
    assert caught.value.category == "user"
    assert "other" not in client.engine.runs
    other.load(tmp_path / "x")


def test_a_full_disk_leaves_the_old_checkpoint(
    client: Client, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(client, range(3, 4))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(staging, "sync", full)
        with pytest.raises(OpError, match="No space left on device") as caught:
            client.save(saved)
    assert caught.value.category == "server"
    assert str(saved) in caught.value.message
    assert os.listdir(saved.parent) == ["saved"]
    assert Client(client.engine, Path(client.base), "other").load(saved, optimizer=True).step == 3


def test_a_replacement_cut_short_is_undone(
    client: Client, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_on_the_new(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_on_the_new)
        with pytest.raises(OpError, match="could not be written"):
            client.save(saved)
    assert os.listdir(saved.parent) == ["saved"]
    # The machine dies between the two renames.
    saved.rename(saved.with_name(".saved.replaced"))
    assert Client(client.engine, Path(client.base), "other").load(saved, optimizer=True).step == 3


class Died(BaseException):
    """The machine lost its power."""


class Disk:
    """Stands between checkpoints and the disk, and notes what is done to it; can die before a step,
    after which nothing happens any more."""

    def __init__(self, patch: pytest.MonkeyPatch, die_before: int | None = None) -> None:
        self.steps: list[tuple[str, Path]] = []
        self._die_before = die_before
        patch.setattr(staging, "sync", self._noting("sync", staging.sync))
        patch.setattr(Path, "rename", self._noting("rename", Path.rename))
        patch.setattr(shutil, "rmtree", self._noting("remove", shutil.rmtree))
        patch.setattr(checkpoint, "_save_tensors", self._noting("write", checkpoint._save_tensors))

    def _noting(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            if self._die_before is not None and len(self.steps) >= self._die_before:
                raise Died
            path = next(argument for argument in arguments if isinstance(argument, Path))
            self.steps.append((name, path))
            return real(*arguments, **options)

        return step


def test_files_are_on_the_disk_before_the_name_is(
    client: Client, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        client.save(saved)
    renames = [number for number, (name, _) in enumerate(disk.steps) if name == "rename"]
    moved = [disk.steps[number][1] for number in renames]
    assert moved[0] == saved
    fresh = moved[1]
    before = {path for name, path in disk.steps[: renames[0]] if name == "sync"}
    assert before == {fresh, *(fresh / file.name for file in saved.iterdir())}
    # The old one goes when the disk knows of the new one.
    old = saved.with_name(".saved.replaced")
    assert disk.steps[renames[1] + 1 :][:2] == [("sync", saved.parent), ("remove", old)]


def test_new_folders_are_on_the_disk_too(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create()
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        client.save(tmp_path / "run" / "weights" / "first")
    synced = {path for name, path in disk.steps if name == "sync"}
    assert {tmp_path, tmp_path / "run", tmp_path / "run" / "weights"} <= synced


def test_a_death_at_any_moment_leaves_one_of_the_two_whole(
    client: Client, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        client.save(saved)
    seen = set()
    for moment in range(len(disk.steps) + 1):
        train(client, range(3, 4))
        now = client.step(ADAM).step
        last = int(json.loads((saved / "jupyter_tinker.json").read_text())["step"])
        with monkeypatch.context() as patch:
            Disk(patch, die_before=moment)
            with contextlib.suppress(Died):
                client.save(saved)
        other = Client(client.engine, Path(client.base), "other")
        step = other.load(saved, optimizer=True).step
        other.unload()
        assert step in (last, now), moment
        seen.add(step == now)
        client.save(saved)
        assert os.listdir(saved.parent) == ["saved"], moment
    assert seen == {True, False}


def test_another_shape_is_refused_with_both_named(client: Client, saved: Path) -> None:
    other = Client(client.engine, Path(client.base), "other")
    other.create(rank=2, train_unembed=False)
    before = other.weights.clone()
    with pytest.raises(OpError, match=r"rank 4.*attn\+mlp\+unembed.*rank 2.*attn\+mlp"):
        other.load_weights(saved)
    assert torch.equal(before, other.weights)


def test_another_base_is_refused(client: Client, saved: Path, models: Models) -> None:
    other = Client(client.engine, models("tied"), "other")
    with pytest.raises(OpError, match="was trained on 'tiny'") as caught:
        other.load(saved)
    assert caught.value.category == "user"


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def _edit(name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)

    return damage


def _about(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "jupyter_tinker.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_without("jupyter_tinker.json"), "no checkpoint at"),
        (_without("adapter_model.safetensors"), "is missing"),
        (_without("optimizer.safetensors"), "no optimizer state"),
        (_cut("jupyter_tinker.json"), "unreadable"),
        (_cut("adapter_model.safetensors"), "unreadable"),
        (_cut("optimizer.safetensors"), "unreadable"),
        (_edit("adapter_model.safetensors", lambda t: t.pop(_KEY)), "q_proj.lora_A"),
        (
            _edit("adapter_model.safetensors", lambda t: t.update({_KEY: torch.zeros(5, 32)})),
            "q_proj.lora_A",
        ),
        (_edit("optimizer.safetensors", lambda t: t.pop("step")), "step"),
        (_about(format=99), "format 99"),
        (_about(lora={"rank": 4}), "unreadable"),
        (_about(lora=7), "unreadable"),
        (_about(step="x"), "unreadable"),
        (shutil.rmtree, "no checkpoint at"),
    ],
)
def test_damage_is_told_and_the_run_unharmed(
    client: Client, saved: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(saved)
    before = client.weights.clone()
    other = Client(client.engine, Path(client.base), "other")
    with pytest.raises(OpError, match=sentence):
        other.load(saved, optimizer=True)
    with pytest.raises(OpError, match=sentence):
        client.load_weights(saved, optimizer=True)
    assert list(client.engine.runs) == ["run"]
    assert torch.equal(before, client.weights)
    train(client, range(1))
