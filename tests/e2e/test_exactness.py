"""SmolLM2 through the SDK against an independent loop of plain PyTorch and PEFT.

Both start from the run's own first adapter, downloaded from the server.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tinker
from tinker import types

from jupyter_tinker.wire.ops import AdamParams
from tests.engine.reference import PlainLoop, Sample
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TEXT = """A frozen base needs no gradients of its own weights. What is learned lives in two thin
matrices beside each layer, one of them zero at first, so that a new run answers as its base does.
The loop that teaches it belongs to a person, who may want to watch, and to turn a knob or two."""

CASES = {
    "all": ({}, AdamParams()),
    "all, clipped": ({}, AdamParams(learning_rate=3e-4, eps=1e-8, grad_clip_norm=1.0)),
    "attention": (
        {"train_mlp": False, "train_unembed": False},
        AdamParams(learning_rate=3e-4, beta1=0.8, beta2=0.99, eps=1e-8, weight_decay=0.1),
    ),
    "mlp": (
        {"train_attn": False, "train_unembed": False},
        AdamParams(learning_rate=3e-4, eps=1e-8, grad_clip_norm=1e6),
    ),
}


@pytest.fixture(scope="module")
def server(start, smollm2: Path) -> Server:
    return start(models={"smollm2-135m": smollm2})


@pytest.fixture(scope="module")
def service(server: Server) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=server.url, api_key=server.key) as client:
        yield client


def _samples(tokens: list[int], seed: int) -> list[Sample]:
    """Stretches of the text, of several lengths, the first third of each without weight."""
    # Not every stretch serves: where its second token is ill-conditioned, as in seed 4, the plain
    # loop itself is 3e-4 away from its own float64 after four steps, and the engine half as much.
    draw = np.random.default_rng(seed % 4)
    samples = []
    for length in (9, 24, 15, 31):
        start = int(draw.integers(0, len(tokens) - length - 1))
        weights = np.ones(length, np.float32)
        weights[: length // 3] = 0
        targets = np.array(tokens[start + 1 : start + length + 1])
        samples.append(Sample(tokens[start : start + length], targets, weights))
    return samples


def _datum(sample: Sample) -> types.Datum:
    assert sample.weights is not None
    return types.Datum(
        model_input=types.ModelInput.from_ints(sample.tokens),
        loss_fn_inputs={
            "target_tokens": types.TensorData.from_numpy(sample.targets),
            "weights": types.TensorData.from_numpy(sample.weights),
        },
    )


def _download(server: Server, path: str, folder: Path) -> Path:
    """The files of external weights, by their signed URLs."""
    run, kind, name = path.removeprefix("tinker://").split("/")
    route = f"tinker/api/v1/training_runs/{run}/checkpoints/{kind}/{name}/external_weights_urls"
    status, answer = server.fetch(route)
    assert status == 200, answer
    folder.mkdir()
    for file, url in answer["urls"].items():
        with urllib.request.urlopen(url) as stream:
            (folder / file).write_bytes(stream.read())
    return folder


@pytest.mark.parametrize("case", CASES)
def test_five_steps_follow_the_plain_loop(
    server: Server, service: tinker.ServiceClient, smollm2: Path, tmp_path: Path, case: str
) -> None:
    flags, adam = CASES[case]
    client = service.create_lora_training_client("smollm2-135m", rank=8, seed=5, **flags).result()
    tokens = client.get_tokenizer().encode(TEXT)
    first = client.save_weights_external("first").result()
    plain = PlainLoop(smollm2, _download(server, first.path, tmp_path / "adapter"))
    for seed in range(5):
        samples = _samples(tokens, seed)
        forward = client.forward_backward([_datum(s) for s in samples], "cross_entropy")
        step = client.optim_step(types.AdamParams(**vars(adam)))
        result, metrics = forward.result(), step.result().metrics
        # Only now: two processes that compute at once on the same cores wait for one another.
        expected, loss = plain.backward(samples)
        assert result.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5, abs=1e-3)
        for output, wanted in zip(result.loss_fn_outputs, expected, strict=True):
            np.testing.assert_allclose(output["logprobs"].to_numpy(), wanted, atol=1e-4)
        assert metrics["grad_norm"] == pytest.approx(plain.step(adam), rel=1e-3)
