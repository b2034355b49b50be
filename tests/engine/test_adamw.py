"""The optimizer by itself, held against torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from jupyter_tinker.engine.adamw import AdamW, norm
from jupyter_tinker.wire.ops import AdamParams

from .scarce import failures


def _drawn(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _state(weights: torch.Tensor, optimizer: AdamW) -> list[torch.Tensor]:
    state = (weights, optimizer.mean, optimizer.square, optimizer.count)
    return [tensor.clone() for tensor in state]


def _theirs(weights: torch.Tensor, params: AdamParams) -> tuple[torch.Tensor, torch.optim.AdamW]:
    parameter = torch.nn.Parameter(weights.clone())
    return parameter, torch.optim.AdamW(
        [parameter],
        lr=params.learning_rate,
        betas=(params.beta1, params.beta2),
        eps=params.eps,
        weight_decay=params.weight_decay,
        foreach=False,
    )


@pytest.mark.parametrize("size", [1, 1000, (1 << 18) + 1, 600_001])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_it_steps_as_torch_does(size: int, scale: float) -> None:
    params = AdamParams(learning_rate=1e-2, eps=1e-8, weight_decay=0.1)
    weights = _drawn(size, 0)
    optimizer = AdamW(weights)
    parameter, theirs = _theirs(weights, params)
    for step in range(1, 4):
        gradients = _drawn(size, step)
        given, before = gradients.clone(), weights.clone()
        length = optimizer.step(weights, gradients, params, scale)
        parameter.grad = gradients * scale
        theirs.step()
        assert torch.equal(gradients, given)
        torch.testing.assert_close(weights, parameter.detach(), rtol=1e-5, atol=1e-6)
        assert length == pytest.approx(norm(weights - before), rel=1e-6)
    assert optimizer.count == 3


def test_a_step_that_no_bound_vouches_for_is_as_exact() -> None:
    params = AdamParams(learning_rate=1e16, eps=1e-30)
    weights = torch.zeros(1000)
    optimizer = AdamW(weights)
    parameter, theirs = _theirs(weights, params)
    gradients = _drawn(1000, 1)
    optimizer.step(weights, gradients, params)
    parameter.grad = gradients
    theirs.step()
    torch.testing.assert_close(weights, parameter.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("where", [0, 300_000])
def test_where_one_number_overflows_nothing_has_changed(where: int) -> None:
    """Amid slices that were already done."""
    params = AdamParams(learning_rate=1.0)
    weights = _drawn(600_001, 0)
    optimizer = AdamW(weights)
    optimizer.step(weights, _drawn(600_001, 1), params)
    weights[where] = 3e38
    before = _state(weights, optimizer)
    gradients = torch.ones(600_001)
    gradients[where] = -1.0
    huge = AdamParams(learning_rate=1e38)
    assert not math.isfinite(optimizer.step(weights, gradients, huge))
    for old, new in zip(before, _state(weights, optimizer), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("learning_rate", [1e-2, 1e16], ids=["bounded", "not bounded"])
def test_where_memory_runs_out_nothing_has_changed(learning_rate: float) -> None:
    """Amid slices, too."""
    params = AdamParams(learning_rate=learning_rate, eps=1e-8)
    weights = _drawn(600_001, 0)
    optimizer = AdamW(weights)
    optimizer.step(weights, _drawn(600_001, 1), AdamParams(learning_rate=1e-2))
    before = _state(weights, optimizer)
    gradients = _drawn(600_001, 2)
    times = 0
    for _ in failures(lambda: optimizer.step(weights, gradients, params, 0.5)):
        times += 1
        for old, new in zip(before, _state(weights, optimizer), strict=True):
            assert torch.equal(old, new)
    assert times > 5
    assert optimizer.count == 2
