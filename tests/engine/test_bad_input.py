"""What a user can get wrong is told in a sentence, and the run goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jupyter_tinker.engine import base_model
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire import ops
from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.ops import AdamParams, OpError

from .reference import VOCAB, Client, Sample, datum, request, samples, tensor, text

GOOD = samples(0, lengths=(4,))[0]
ADAM = AdamParams(learning_rate=1e-2, eps=1e-8)


def inputs(**tensors: pb.Tensor) -> pb.Datum:
    """The good datum with other loss inputs."""
    changed = datum(GOOD)
    for key, value in tensors.items():
        changed.loss_fn_inputs[key].CopyFrom(value)
    return changed


def tokens(*ids: int) -> Sample:
    n = len(ids)
    return Sample(list(ids), np.zeros(n, np.int64), np.ones(n, np.float32))


def without(key: str) -> pb.Datum:
    changed = datum(GOOD)
    del changed.loss_fn_inputs[key]
    return changed


def floats(*values: float) -> pb.Tensor:
    return tensor(np.array(values, np.float32))


def ints(*values: int) -> pb.Tensor:
    return tensor(np.array(values))


def body(bad: Sample | pb.Datum, **fields: Any) -> bytes:
    return request([GOOD, bad], **fields)


SENTENCES = {
    "not protobuf": (b"\xff\xff\xff", "not a protobuf"),
    "no data": (request([]), "holds no data"),
    "empty input": (body(pb.Datum()), "datum 1: model_input is empty"),
    "too long": (body(tokens(*range(65))), "datum 1: model_input has 65 tokens .* holds 64"),
    "token beyond": (body(tokens(3, VOCAB)), f"datum 1: model_input holds token id {VOCAB}"),
    "token below": (body(tokens(3, -1)), "datum 1: model_input holds token id -1"),
    "no targets": (body(without("target_tokens")), r"datum 1: .*\['target_tokens'\]; add it"),
    "target beyond": (
        body(inputs(target_tokens=ints(1, 2, 3, VOCAB))),
        rf"datum 1: .*\['target_tokens'\] holds token id {VOCAB}",
    ),
    "target below": (body(inputs(target_tokens=ints(1, 2, 3, -7))), "holds token id -7"),
    "float targets": (body(inputs(target_tokens=floats(1, 2, 3, 4))), "is float32; send int64"),
    "short targets": (body(inputs(target_tokens=ints(1, 2, 3))), r"shape \[3\] and .* 4 tokens"),
    "no columns": (
        body(inputs(target_tokens=tensor(np.zeros((4, 0), np.int64)))),
        r"shape \[4, 0\]",
    ),
    "short weights": (body(inputs(weights=floats(1, 2))), r"datum 1: .*\['weights'\] has shape"),
    "2-D weights": (body(inputs(weights=tensor(np.ones((4, 1))))), r"shape \[4, 1\]"),
    "nan": (body(inputs(weights=floats(1, 2, 3, np.nan))), r"\['weights'\] holds NaN"),
    "infinity": (body(inputs(weights=floats(1, 2, 3, np.inf))), r"\['weights'\] holds NaN"),
    "bad dtype": (body(inputs(weights=pb.Tensor(dense=b"ab", dtype=4))), "dtype number 4"),
    "odd bytes": (body(inputs(weights=pb.Tensor(dense=b"abc", dtype=1))), "has 3 bytes"),
    "odd shape": (
        body(inputs(weights=pb.Tensor(dense=b"abcd", dtype=1, shape=[7]))),
        "has 1 values, and its shape .* 7",
    ),
    "three dimensions": (
        body(inputs(weights=pb.Tensor(dtype=1, shape=[1, 1, 0]))),
        "send one or two dimensions",
    ),
    "negative shape": (body(inputs(weights=pb.Tensor(dtype=1, shape=[-1]))), "one or two dim"),
    "image": (
        body(pb.Datum(model_input=[text([1]), pb.Chunk(image=pb.ImageChunk(data=b"x"))])),
        "datum 1: model_input chunk 1 is a image chunk",
    ),
    "dmel": (body(pb.Datum(model_input=[pb.Chunk(dmel=pb.DmelChunk())])), "a dmel chunk"),
    "unknown chunk": (body(pb.Datum(model_input=[pb.Chunk()])), "of a kind unknown here"),
    "unknown loss": (body(GOOD, loss_fn="stable_reinforce"), "it has .*cross_entropy"),
    "no loss": (body(GOOD, loss_fn=""), "has no loss ''"),
    "config key": (body(GOOD, loss_fn_config={"beta": 1.0}), "no loss_fn_config key 'beta'"),
    "config text": (
        body(GOOD, loss_fn_config_v2={"loss_id": pb.LossConfigValue(text="x")}),
        "no loss_fn_config key 'loss_id'; it allows none",
    ),
    "config without a value": (
        body(GOOD, loss_fn_config_v2={"beta": pb.LossConfigValue()}),
        "no value for 'beta'",
    ),
}


def train(client: Client, mistake: Callable[[], None] = lambda: None) -> torch.Tensor:
    """Three steps with a mistake wherever one can be made; the last weights."""
    for seed in range(3):
        mistake()
        client.backward(samples(seed))
        mistake()
        client.backward(samples(seed + 10))
        client.step(ADAM)
    return client.weights.clone()


@pytest.fixture(scope="module")
def undisturbed(models: Callable[[str], Path]) -> torch.Tensor:
    client = Client(Engine(), models("untied"))
    client.create()
    return train(client)


@pytest.mark.parametrize("name", SENTENCES)
def test_bad_batches(client: Client, undisturbed: torch.Tensor, name: str) -> None:
    bad, sentence = SENTENCES[name]
    client.create()
    # Each datum a pass of its own, so that the good one has left gradients when the bad one fails.
    client.engine.options = replace(client.engine.options, microbatch_tokens=4096)

    def mistake() -> None:
        with pytest.raises(OpError, match=sentence) as caught:
            client.send(bad)
        assert caught.value.category == "user"

    assert torch.equal(train(client, mistake), undisturbed)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"beta1": -0.1}, "beta1 is -0.1"),
        ({"beta2": 1.5}, "beta2 is 1.5"),
        ({"beta2": float("nan")}, "beta2 is nan"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"eps": float("inf")}, "eps is inf"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"grad_clip_norm": -1.0}, "grad_clip_norm is -1.0"),
        ({"grad_clip_norm": float("nan")}, "grad_clip_norm is nan"),
    ],
    ids=str,
)
def test_bad_adam_parameters(
    client: Client, undisturbed: torch.Tensor, changes: dict[str, float], sentence: str
) -> None:
    client.create()

    def mistake() -> None:
        with pytest.raises(OpError, match=sentence):
            client.step(ADAM, **changes)

    for seed in range(3):
        client.backward(samples(seed))
        mistake()
        client.backward(samples(seed + 10))
        mistake()
        client.step(ADAM)
    assert torch.equal(client.weights, undisturbed)


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"rank": 0}, "rank 0 does not fit.* from 1 to 16"),
        ({"rank": 17}, "rank 17 does not fit.* from 1 to 16"),
        ({"rank": 33, "train_attn": False}, "from 1 to 32"),
        ({"train_attn": False, "train_mlp": False, "train_unembed": False}, "trains nothing"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"seed": 1 << 70}, "not a 64-bit integer"),
    ],
    ids=str,
)
def test_bad_adapters(client: Client, lora: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OpError, match=sentence):
        client.create(**lora)
    assert not client.engine.runs
    client.create()
    client.backward(samples(0))


def test_unknown_and_doubled_runs(client: Client) -> None:
    for act in (
        lambda: client.backward(samples(0)),
        lambda: client.step(ADAM),
        lambda: client.zero_grad(),
        lambda: client.save(Path("/nowhere")),
        lambda: client.load_weights(Path("/nowhere")),
    ):
        with pytest.raises(OpError, match="no run 'run'"):
            act()
    client.create()
    with pytest.raises(OpError, match="already has a run 'run'"):
        client.create()


def test_base_models_that_cannot_be_loaded(
    engine: Engine, models: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(OpError, match=r"no config\.json"):
        Client(engine, tmp_path / "absent").create()
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text((models("untied") / "config.json").read_text())
    with pytest.raises(OpError, match="could not be loaded from"):
        Client(engine, folder).create()
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(OpError, match="could not be loaded from"):
        Client(engine, folder).create()
    (folder / "config.json").write_text("{")
    with pytest.raises(OpError, match="could not be loaded from"):
        Client(engine, folder).create()
    assert not engine.bases


def test_absent_weights_are_not_made_up(
    engine: Engine, models: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(models("untied") / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "config.json").write_text((models("untied") / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OpError, match=r"lack 1 weights, such as .*up_proj"):
        Client(engine, tmp_path).create()


def test_logits_computed_in_an_unknown_way_are_refused(
    engine: Engine, models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = base_model._output_layer

    def ignorant(model: Any) -> Any:
        return replace(real(model), softcap=None)

    monkeypatch.setattr(base_model, "_output_layer", ignorant)
    with pytest.raises(OpError, match="computes its logits in a way"):
        Client(engine, models("gemma2")).create()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "abacus"}, "no device 'abacus'"),
        ({"device": "cuda:99"}, "CUDA GPUs"),
        ({"dtype": "float8"}, "no dtype 'float8'"),
        ({"attention": "selective"}, "no attention 'selective'"),
        ({"attention": "flash_attention_2", "device": "cpu"}, "needs the flash-attn package"),
        ({"microbatch_tokens": -1}, "at least 1"),
    ],
    ids=str,
)
def test_bad_options(engine: Engine, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OpError, match=sentence):
        engine.handle(ops.Start(ops.EngineOptions(**options)))
