"""Choosing tokens: temperature, top-k, top-p, and a draw that depends on nothing but its number.

A token is drawn by inverting the cumulative distribution at a uniform number that belongs to the
sequence and the position, so what else is being sampled has no part in it. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_BLOCK = 128  # tokens; vocabularies are mostly multiples of it


@dataclass(frozen=True)
class Choice:
    """How one row's token is chosen."""

    temperature: float = 1.0  # 0: the likeliest
    top_k: int | None = None
    top_p: float = 1.0

    @property
    def truncates(self) -> bool:
        return self.temperature > 0 and (self.top_k is not None or self.top_p < 1)


def logprobs(logits: torch.Tensor, choices: Sequence[Choice]) -> torch.Tensor:
    """(B, V) logits -> (B, V) log-probabilities at each row's temperature; at 1 where that is 0.

    Neither top-k nor top-p is in them: at temperature 1 they are what training computes.
    """
    temperatures = [choice.temperature or 1.0 for choice in choices]
    if any(t != 1.0 for t in temperatures):
        logits = logits / logits.new_tensor(temperatures)[:, None]
    return torch.log_softmax(logits, dim=-1)


def tokens(logprobs: torch.Tensor, choices: Sequence[Choice], uniforms: np.ndarray) -> torch.Tensor:
    """(B, V) log-probabilities and (B,) numbers in [0, 1) -> (B,) tokens."""
    weights = logprobs.exp()  # (B, V)
    for row, choice in enumerate(choices):
        if choice.truncates:
            weights[row] = _truncated(weights[row], choice)
    drawn = _invert(weights, torch.from_numpy(uniforms).to(weights.device))
    greedy = [row for row, choice in enumerate(choices) if choice.temperature == 0]
    if greedy:
        drawn[greedy] = logprobs[greedy].argmax(dim=-1)
    return drawn


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulated weights pass the uniform share of their sum."""
    # Blocks first: only the one that is passed has to be cumulated token by token.
    blocks = F.pad(weights, (0, -weights.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
    # In float64: a float32 sum over a vocabulary is off by more than a rare token's probability.
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    share = uniforms * sums[:, -1]
    block = _passed(sums, share)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_(min=0)[:, None])[:, 0], 0.0)
    own = blocks[torch.arange(len(blocks), device=blocks.device), block]
    at = block * _BLOCK + _passed(own.cumsum(-1, dtype=torch.float64), share - before)
    return at.clamp_(max=weights.shape[1] - 1)  # NaN, once more


def _passed(sums: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The first of (B, N) growing sums that is more than (B,) a share of the last one."""
    total = sums[:, -1]
    # Below the last sum, whatever rounding says: at it there is nothing.
    below = torch.minimum(share, torch.nextafter(total, torch.zeros_like(total)))
    at = torch.searchsorted(sums, below[:, None], right=True)[:, 0]
    return at.clamp_(max=sums.shape[1] - 1)  # where the sums are NaN


def _truncated(weights: torch.Tensor, choice: Choice) -> torch.Tensor:
    """One row's weights, 0 outside of the top k and of the nucleus (Holtzman et al., 2020)."""
    count = min(choice.top_k or len(weights), len(weights))
    # Stable, so that ties always fall the same way.
    order = weights.argsort(descending=True, stable=True)[:count]
    chosen = weights[order].double()
    before = chosen.cumsum(0) - chosen
    chosen = chosen.masked_fill(before >= choice.top_p * chosen.sum(), 0.0)
    chosen[0] = weights[order[0]]
    return torch.zeros_like(weights).scatter_(0, order, chosen.to(weights.dtype))
