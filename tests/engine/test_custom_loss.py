"""Losses that the SDK traces: the same numbers as where the client computes them itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
import torch.nn.functional as F
from tinker.lib.public_interfaces.custom_loss import LossHandle, run_loss_handle

from jupyter_tinker.wire import tinker_pb2 as pb
from jupyter_tinker.wire.ops import EngineOptions, OpError

from .graphs import LP, backward, call, datum, definition, graph, method, ref, trace
from .reference import VOCAB, Answer, Client, PlainLoop, Sample, samples


def ppo(logprobs, old, advantages):
    """PPO with an entropy-like bonus, as a person would write it."""
    ratio = torch.exp(logprobs - old)
    inside = (advantages != 0).float()
    surrogate = torch.minimum(ratio * advantages, torch.clamp(ratio, 0.8, 1.2) * advantages)
    kl = ((ratio - 1) - (logprobs - old)) * inside
    loss = -surrogate.sum() + 0.1 * kl.sum()
    clipped = ((ratio < 0.8) | (ratio > 1.2)).float() * inside
    metrics = {
        "custom/kl:mean": kl.sum() / inside.sum().clamp(min=1),
        "custom/clipped:sum": clipped.sum(),
    }
    return loss, metrics


def dpo(logprobs, old, chosen, beta):
    """A pair in one datum: `chosen` is 1, 0 or -1 for each token."""
    picked = logprobs[chosen > 0].sum() - logprobs[chosen < 0].sum()
    before = old[chosen > 0].sum() - old[chosen < 0].sum()
    margin = beta * (picked - before)
    return -F.logsigmoid(margin), {"custom/margin:mean": margin.detach()}


def reverse_kl(logprobs, teacher):
    """Over K candidates of each token, the policy renormalised over them."""
    own = F.log_softmax(logprobs, dim=-1)
    theirs = teacher - torch.logsumexp(teacher, dim=1, keepdim=True)
    per_token = (own.exp() * (own - theirs)).sum(-1)
    return per_token.mean() * math.sqrt(4), {"custom/worst_kl:sum": per_token.max(dim=0).values}


def data_for(name: str, seed: int, lengths: Sequence[int] = (6, 19, 2, 11)) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    made = []
    for sample in samples(seed, lengths, k=3 if name == "reverse_kl" else 0):
        n = len(sample.tokens)
        arrays: dict[str, np.ndarray] = {"target_tokens": sample.targets}
        old = -np.abs(rng.normal(size=n) * 0.5 + 6)
        if name == "ppo":
            arrays |= {"old": old, "advantages": rng.normal(size=n) * (np.arange(n) > n // 3)}
        elif name == "dpo":
            arrays |= {"old": old, "chosen": rng.integers(-1, 2, n), "beta": np.array(0.3)}
        else:
            arrays |= {"teacher": rng.normal(size=(n, 3))}
        arrays = {
            key: array if np.issubdtype(array.dtype, np.integer) else array.astype(np.float32)
            for key, array in arrays.items()
        }
        made.append({"tokens": sample.tokens, **arrays})
    return made


LOSSES: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "ppo": (ppo, {"logprobs": 1, "old": 1, "advantages": 1}),
    "dpo": (dpo, {"logprobs": 1, "old": 1, "chosen": 1, "beta": 0}),
    "reverse_kl": (reverse_kl, {"logprobs": 2, "teacher": 2}),
}


def client_side(
    client: Client, handle: LossHandle, rows: list[dict[str, Any]]
) -> tuple[float, dict[str, float], Answer]:
    """As the SDK does it where the server cannot: forward, the loss here, weights for backward."""
    bare = [Sample(row["tokens"], row["target_tokens"], None) for row in rows]
    leaves = [torch.tensor(lp, requires_grad=True) for lp in client.forward(bare).logprobs]
    data = [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(row["tokens"]),
            loss_fn_inputs={
                key: tinker.TensorData.from_numpy(row[key]) for key in row if key != "tokens"
            },
        )
        for row in rows
    ]
    loss, metrics = run_loss_handle(handle, data, leaves)
    loss.backward()
    weighted = [
        Sample(row["tokens"], row["target_tokens"], -leaf.grad.numpy())
        for row, leaf in zip(rows, leaves, strict=True)
    ]
    return float(loss.detach()), metrics, client.backward(weighted)


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_as_on_the_client(client: Client, name: str) -> None:
    function, ranks = LOSSES[name]
    handle, rows = trace(function, **ranks), data_for(name, 3)
    client.create()
    loss, metrics, _ = client_side(client, handle, rows)
    expected = client.gradients.clone()
    client.zero_grad()
    client.engine.options = EngineOptions(microbatch_tokens=24)
    answer = backward(client, definition(handle), [datum(**row) for row in rows])
    torch.testing.assert_close(client.gradients, expected, atol=1e-5, rtol=1e-4)
    assert client.gradients.any()
    assert answer.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5)
    assert answer.stats.loss_sum == answer.metrics["loss:sum"]
    for key, value in metrics.items():
        assert answer.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert [lp.shape for lp in answer.logprobs] == [row["target_tokens"].shape for row in rows]


@pytest.mark.parametrize("name", LOSSES)
def test_the_same_as_over_the_full_logits(client: Client, tmp_path: Path, name: str) -> None:
    function, ranks = LOSSES[name]
    rows = data_for(name, 4)
    client.create()
    client.save(tmp_path / "start")
    plain = PlainLoop(Path(client.base), tmp_path / "start")
    total = torch.zeros(())
    for row in rows:
        lp = plain.logprobs([Sample(row["tokens"], row["target_tokens"], None)])[0]
        inputs = {key: torch.from_numpy(row[key]) for key in ranks if key != "logprobs"}
        total = total + function(lp, **inputs)[0]
    total.backward()
    handle = trace(function, **ranks)
    answer = backward(client, definition(handle), [datum(**row) for row in rows])
    own = client.engine.runs[client.run].adapter.gradient_views
    for key, gradient in plain.gradients.items():
        torch.testing.assert_close(own[key], gradient, atol=1e-4, rtol=1e-3)
    assert answer.metrics["loss:sum"] == pytest.approx(float(total.detach()), rel=1e-4)


def test_the_split_of_a_batch_does_not_matter(client: Client) -> None:
    loss = definition(trace(ppo, logprobs=1, old=1, advantages=1))
    data = [datum(**row) for row in data_for("ppo", 5)]
    client.create()
    whole = backward(client, loss, data)
    at_once = client.gradients.clone()
    client.zero_grad()
    parts = [backward(client, loss, [one]) for one in data]
    torch.testing.assert_close(client.gradients, at_once, atol=2e-4, rtol=2e-4)
    for key, value in whole.metrics.items():
        together = sum(part.metrics[key] for part in parts)
        together /= len(parts) if key.endswith(":mean") else 1
        assert together == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_forward_only(client: Client) -> None:
    loss = definition(trace(ppo, logprobs=1, old=1, advantages=1))
    data = [datum(**row) for row in data_for("ppo", 6)]
    client.create()
    forward = backward(client, loss, data, forward_only=True)
    assert not client.gradients.any()
    assert forward.metrics == backward(client, loss, data).metrics
    assert client.gradients.any()


def many_functions(logprobs, weights, steps):
    """Some of everything that people write losses with."""
    x = logprobs * weights
    n = x.shape[0]
    a = abs(x) + (-x) + 1 / (1 + x**2) + 2**x + (x.detach() // 0.7) + x % 0.3
    b = F.softplus(x) + F.logsigmoid(x) + F.relu(x) + F.silu(x) + F.gelu(x) + F.leaky_relu(x)
    b = b + F.log_softmax(x, dim=0) + torch.softmax(x, 0) + torch.special.expit(x) + x.tanh()
    c = x[weights > 0].sum() + x[:-1].mean() + x[None].sum() + x[..., 0].sum() + x[steps % n].sum()
    best = x.max(dim=0)
    d = best.values + best[0] * torch.sort(x).values[1] + math.sqrt(n) * x.std() + x.norm()
    e = torch.where(weights > 0, x, torch.zeros_like(x)).sum() + x.new_ones(3).sum()
    e = e + torch.zeros(n, dtype=torch.float32, device=x.device).sum() + torch.arange(n).sum()
    f = x.clamp(min=-0.8, max=float("inf")).detach().to(torch.float32).type_as(x) + x.float()
    g = (x > 0) & (x < 2) | ~(x == 1)
    h = F.huber_loss(x, weights) + F.smooth_l1_loss(x, weights, reduction="sum")
    h = (
        h
        + F.mse_loss(x, weights)
        + F.kl_div(x, weights.softmax(0))
        + F.cosine_similarity(x, weights, dim=0)
    )
    h = h + F.binary_cross_entropy_with_logits(x, weights.sigmoid()) + F.normalize(x, dim=0).sum()
    i = torch.stack([c, d]).sum() + torch.cat([x, x]).sum() + x.size(0) + x.ndim
    i = i + torch.cumsum(x, 0)[-1] + torch.logsumexp(x, 0) + (x @ weights) + torch.dot(x, weights)
    i = i + torch.outer(x, x).mean() + x.gather(0, steps % n).sum() + F.pad(x, (1, 2)).sum()
    i = i + x.unsqueeze(1).expand(n, 2).reshape(-1).sum() + x.masked_fill(weights > 0, 0.0).sum()
    i = i + x.topk(2).values.sum() + torch.linalg.vector_norm(x) + x.view(-1, 1).T.sum()
    total = a.sum() + b.sum() + c + d + e + f.sum() + g.sum() + h + i
    return total, {"custom/best:sum": best.values, "custom/nans:sum": x.isnan().sum()}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
def test_what_people_write_losses_with(client: Client) -> None:
    handle = trace(many_functions, logprobs=1, weights=1, steps=1)
    rng = np.random.default_rng(0)
    rows = [
        {
            "tokens": rng.integers(0, VOCAB, n).tolist(),
            "target_tokens": rng.integers(0, VOCAB, n),
            "weights": rng.normal(size=n).astype(np.float32),
            "steps": rng.integers(0, 100, n),
        }
        for n in (5, 14)
    ]
    client.create()
    loss, metrics, _ = client_side(client, handle, rows)
    expected = client.gradients.clone()
    client.zero_grad()
    answer = backward(client, definition(handle), [datum(**row) for row in rows])
    torch.testing.assert_close(client.gradients, expected, atol=1e-3, rtol=1e-3)
    assert answer.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5)
    assert answer.metrics["custom/best:sum"] == pytest.approx(metrics["custom/best:sum"])


ROW = {
    "tokens": [3, 4, 5],
    "target_tokens": np.array([4, 5, 6]),
    "weights": np.array([1, 0, 2], np.float32),
}
GOOD = graph(call("torch.exp", LP))
BAD_DATA = {
    "an input is missing": (GOOD, {"weights": None}, r"'hand-made' needs .*\['weights'\]"),
    "another rank": (
        GOOD,
        {"weights": np.ones((3, 2), np.float32)},
        r"\['weights'\] has two dimensions; custom loss 'hand-made' declares it with rank 1",
    ),
    "another rank of targets": (
        GOOD,
        {"target_tokens": np.ones((3, 2), np.int64)},
        "custom loss 'hand-made' takes one target a token",
    ),
    "shapes that do not fit": (
        graph(call("operator.add", LP, ref("weights"))),
        {"weights": np.ones(2, np.float32)},
        r"datum 1: custom loss 'hand-made': node 'made' \('operator.add'\) failed: The size",
    ),
    "an index beyond": (graph(call("operator.getitem", LP, [7])), {}, "failed: index 7 is out"),
    "no derivative": (
        graph(call("operator.floordiv", LP, 0.5)),
        {},
        "datum 0: custom loss 'hand-made' has no gradient here: derivative for aten::floor_divide",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused_and_leave_no_trace(client: Client, case: str) -> None:
    loss, changes, sentence = BAD_DATA[case]
    client.create()
    client.backward(samples(0))
    before = client.gradients.clone()
    client.engine.options = EngineOptions(microbatch_tokens=1)
    arrays = {key: array for key, array in {**ROW, **changes}.items() if array is not None}
    fine = {**ROW, "weights": np.ones(3, np.float32)}
    first = [datum(**fine)] if "datum 1" in sentence else []
    with pytest.raises(OpError, match=sentence) as caught:
        backward(client, loss, [*first, datum(**arrays)])
    assert caught.value.category == "user"
    assert torch.equal(client.gradients, before)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda lp, w: (w.sum(), {}), "does not depend on logprobs"),
        (lambda lp, w: (lp.detach().sum(), {}), "does not depend on logprobs"),
        (lambda lp, w: (lp * w, {}), r"must return a scalar loss, and returns shape \[3\]"),
        (lambda lp, w: (lp.argmax(), {}), "floating-point"),
        (lambda lp, w: (lp.shape[0], {}), "floating-point"),
        (lambda lp, w: (lp.sum(), {"custom/x:sum": w}), "metric 'custom/x:sum' must be a scalar"),
    ],
)
def test_what_a_loss_must_return(client: Client, made: Any, sentence: str) -> None:
    def loss(logprobs, weights):
        return made(logprobs, weights)

    client.create()
    with pytest.raises(OpError, match=sentence):
        backward(client, definition(trace(loss, logprobs=1, weights=1)), [datum(**ROW)])


def test_scalars_come_as_the_sdk_sends_them(client: Client) -> None:
    def loss(logprobs, scale):
        return (logprobs * scale).sum(), {"custom/dimensions:sum": logprobs.sum() * 0 + scale.ndim}

    client.create()
    made = definition(trace(loss, logprobs=1, scale=0))
    flat, shaped = datum(**ROW), datum(**ROW)
    flat.loss_fn_inputs["scale"].CopyFrom(
        pb.Tensor(dense=np.float32(2).tobytes(), dtype=pb.DTYPE_FLOAT32)
    )
    shaped.loss_fn_inputs["scale"].CopyFrom(flat.loss_fn_inputs["scale"])
    shaped.loss_fn_inputs["scale"].shape.append(1)
    for one in (flat, shaped):
        answer = backward(client, made, [one])
        assert answer.metrics["custom/dimensions:sum"] == 0
        assert answer.metrics["loss:sum"] == pytest.approx(2 * answer.logprobs[0].sum(), rel=1e-5)


def test_settings_other_than_the_id_are_refused(client: Client) -> None:
    client.create()
    with pytest.raises(OpError, match="knows no loss_fn_config key 'beta'; it allows loss_id"):
        backward(client, GOOD, [datum(**ROW)], loss_fn_config={"beta": 1.0})


def test_methods_of_tensors_only(client: Client) -> None:
    client.create()
    shape = call("getattr", LP, "shape", name="shape")
    with pytest.raises(OpError, match="numel"):
        backward(client, graph(shape, method("numel", ref("shape"))), [datum(**ROW)])
