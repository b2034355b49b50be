"""The losses of the API, each an element-wise formula over log-probabilities.

A loss sees one datum: `lp`, the log-probabilities of its target tokens (a differentiable leaf),
its per-token inputs and its settings. It returns the loss of every target; the engine sums, and
takes the gradient by autograd on that small graph. Losses know nothing of models or batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..wire.ops import OpError

Inputs = Mapping[str, torch.Tensor]  # each (N, K), like `lp`
Config = Mapping[str, float]


@dataclass(frozen=True)
class Loss:
    """A loss and what it asks of a datum besides `target_tokens`."""

    name: str
    value: Callable[[torch.Tensor, Inputs, Config], torch.Tensor]  # lp, inputs, config -> (N, K)
    # Which targets can receive a gradient at all; the rest is spared the work for it.
    active: Callable[[Inputs], torch.Tensor]  # inputs -> (N, K) bool
    inputs: Mapping[str, float | None]  # names with the fill value when absent; None: required
    config: Mapping[str, float] = field(default_factory=dict)  # allowed keys with their defaults
    several_targets: bool = False  # takes (N, K) target_tokens


CROSS_ENTROPY = Loss(
    name="cross_entropy",
    value=lambda lp, x, config: -x["weights"] * lp,
    active=lambda x: x["weights"] != 0,
    inputs={"weights": 1.0},
    several_targets=True,
)

LOSSES = {loss.name: loss for loss in (CROSS_ENTROPY,)}


def find(name: str) -> Loss:
    """The loss called `name`."""
    try:
        return LOSSES[name]
    except KeyError:
        raise OpError(
            f"this engine has no loss {name[:60]!r}; it has {', '.join(sorted(LOSSES))}"
        ) from None


def settings(loss: Loss, config: Mapping[str, float | str]) -> dict[str, float]:
    """The loss's settings: its defaults, and what `config` says instead."""
    values = dict(loss.config)
    allowed = ", ".join(sorted(loss.config)) or "none"
    for key, value in config.items():
        if key not in values:
            raise OpError(
                f"{loss.name} knows no loss_fn_config key {key[:60]!r}; it allows {allowed}"
            )
        if isinstance(value, str) or not math.isfinite(value):
            raise OpError(
                f"loss_fn_config[{key!r}] is {value!r}; {loss.name} needs a finite number"
            )
        values[key] = value
    return values
