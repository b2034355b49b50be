"""A token is drawn where the cumulated probabilities pass its number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_tinker.engine import draw
from jupyter_tinker.engine.draw import Choice


@settings(deadline=None)
@given(
    st.integers(1, 400),
    st.integers(0, 999),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=9),
)
def test_it_is_where_the_sum_passes_the_number(
    vocabulary: int, seed: int, uniforms: list[float]
) -> None:
    rng = np.random.default_rng(seed)
    likely = rng.random((len(uniforms), vocabulary)) * (rng.random(vocabulary) < 0.4)
    likely[:, rng.integers(vocabulary)] += 0.1
    shares = likely / likely.sum(1, keepdims=True)
    logprobs = torch.from_numpy(shares).log().float()
    drawn = draw.tokens(logprobs, [Choice()] * len(uniforms), np.array(uniforms)).tolist()
    for row, (token, uniform) in enumerate(zip(drawn, uniforms, strict=True)):
        assert shares[row, token] > 0
        before = math.fsum(shares[row, :token])
        assert before - 1e-6 <= uniform <= before + shares[row, token] + 1e-6


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_that_cannot_be_is_never_drawn(uniform: float) -> None:
    logprobs = torch.full((1, 300), -torch.inf)
    logprobs[0, 170] = 0.0
    assert draw.tokens(logprobs, [Choice()], np.array([uniform])).tolist() == [170]


def test_of_what_is_not_a_number_some_token_is_drawn() -> None:
    logprobs = torch.full((2, 300), torch.nan)
    drawn = draw.tokens(logprobs, [Choice()] * 2, np.array([0.1, 0.9]))
    assert all(0 <= token < 300 for token in drawn.tolist())
