"""The losses of the API, each a formula over one datum's log-probabilities.

A loss sees one datum at a time, whole: `lp`, the log-probabilities of its target tokens (a
differentiable leaf), its inputs and its settings. It returns the loss of every target, or one loss
of the datum; the engine sums, and takes the gradient by autograd on that small graph. Losses know
nothing of models or batches. `docs/losses.md` has the formulas in the notation of papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ..wire.ops import OpError

Tensors = Mapping[str, torch.Tensor]
Arrays = Mapping[str, np.ndarray]
Config = Mapping[str, float]


@dataclass(frozen=True)
class Input:
    """A loss input of a datum, besides `target_tokens`."""

    fill: float | None = None  # what an absent one is filled with; None: it is required
    # None: float32 in the shape of target_tokens. A number: as it was sent, with this rank.
    rank: int | None = None


@dataclass(frozen=True)
class Value:
    """What one datum adds."""

    loss: torch.Tensor  # (N, K) like `lp`, or () where the loss is no sum over targets
    metrics: Mapping[str, float] = field(default_factory=dict)  # summed over datums


@dataclass(frozen=True)
class Loss:
    """A loss and what it asks of a datum besides `target_tokens`."""

    name: str
    value: Callable[[torch.Tensor, Tensors, Config], Value]  # lp (N, K), inputs, config
    inputs: Mapping[str, Input]
    # Which targets can receive a gradient at all, (N, K) bool: the rest is spared the work for it.
    # None: all of them.
    active: Callable[[Tensors], torch.Tensor] | None = None
    config: Mapping[str, float] = field(default_factory=dict)  # allowed keys with their defaults
    config_texts: tuple[str, ...] = ()  # allowed keys that hold a text, which is the server's
    target_ranks: tuple[int, ...] = (1,)  # 1: (N,) target_tokens; 2: (N, K)
    weight: str | None = None  # the input whose sum is the weight; None: active tokens are counted
    # What is wrong with a datum's inputs, as the end of a sentence.
    fault: Callable[[Arrays], str | None] = lambda inputs: None
    # Sums over a whole batch, from its log-probabilities (R,) and inputs (R,).
    report: Callable[[np.ndarray, Arrays, Config], dict[str, float]] | None = None
    custom: bool = False  # of a client's own making: it may take much memory, and fail


def _ratio(lp: torch.Tensor, x: Tensors) -> torch.Tensor:
    """The probability of each token now over that when it was sampled; its gradient is kept."""
    return torch.exp(lp - x["logprobs"])


def _clamp(ratio: torch.Tensor, config: Config) -> torch.Tensor:
    return ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])


def _cross_entropy(lp: torch.Tensor, x: Tensors, config: Config) -> Value:
    return Value(-x["weights"] * lp)


def _importance_sampling(lp: torch.Tensor, x: Tensors, config: Config) -> Value:
    return Value(-_ratio(lp, x) * x["advantages"])


def _ppo(lp: torch.Tensor, x: Tensors, config: Config) -> Value:
    return Value(_clipped(_ratio(lp, x), x["advantages"], config))


def _cispo(lp: torch.Tensor, x: Tensors, config: Config) -> Value:
    return Value(-_clamp(_ratio(lp.detach(), x), config) * lp * x["advantages"])


def _dro(lp: torch.Tensor, x: Tensors, config: Config) -> Value:
    penalty = 0.5 * config["beta"] * (lp - x["logprobs"]).square()
    return Value(-(lp * x["advantages"] - penalty))


def _gspo(lp: torch.Tensor, x: Tensors, config: Config) -> Value:
    inside = x["sequence_ratio_mask"] != 0
    log_ratio = (lp.detach() - x["logprobs"])[inside].mean()
    # The ratio of the whole sequence at every token, with the gradient of that token alone.
    ratio = torch.exp(log_ratio + (lp - lp.detach()))
    return Value(_clipped(ratio, x["advantages"], config))


def _clipped(ratio: torch.Tensor, advantages: torch.Tensor, config: Config) -> torch.Tensor:
    return -torch.minimum(ratio * advantages, _clamp(ratio, config) * advantages)


def _empty_mask(inputs: Arrays) -> str | None:
    if inputs["sequence_ratio_mask"].any():
        return None
    return "['sequence_ratio_mask'] is zero everywhere; mark the tokens of the sampled sequence"


def _policy_report(lp: np.ndarray, x: Arrays, config: Config) -> dict[str, float]:
    """How far the policy is from the one that sampled, over the tokens with an advantage."""
    chosen = x["advantages"] != 0
    log_ratio = (lp - x["logprobs"])[chosen].astype(np.float64)
    return {"policy_tokens:sum": float(chosen.sum()), "kl:sum": float(-log_ratio.sum())}


def _clip_report(lp: np.ndarray, x: Arrays, config: Config) -> dict[str, float]:
    chosen = x["advantages"] != 0
    ratio = np.exp((lp - x["logprobs"])[chosen].astype(np.float64))
    outside = (ratio < config["clip_low_threshold"]) | (ratio > config["clip_high_threshold"])
    return {**_policy_report(lp, x, config), "clipped_tokens:sum": float(outside.sum())}


def _has_advantage(x: Tensors) -> torch.Tensor:
    return x["advantages"] != 0


def _clip(low: float, high: float) -> dict[str, float]:
    return {"clip_low_threshold": low, "clip_high_threshold": high}


_POLICY = {"logprobs": Input(), "advantages": Input()}

LOSSES = {
    loss.name: loss
    for loss in (
        Loss(
            name="cross_entropy",
            value=_cross_entropy,
            inputs={"weights": Input(fill=1.0)},
            active=lambda x: x["weights"] != 0,
            target_ranks=(1, 2),
            weight="weights",
        ),
        Loss(
            name="importance_sampling",
            value=_importance_sampling,
            inputs=_POLICY,
            active=_has_advantage,
            report=_policy_report,
        ),
        Loss(
            name="ppo",
            value=_ppo,
            inputs=_POLICY,
            active=_has_advantage,
            config=_clip(0.8, 1.2),
            report=_clip_report,
        ),
        Loss(
            name="cispo",
            value=_cispo,
            inputs=_POLICY,
            active=_has_advantage,
            config=_clip(0.0, 4.0),
            report=_clip_report,
        ),
        # The penalty has a gradient at every token, with an advantage or without.
        Loss(name="dro", value=_dro, inputs=_POLICY, config={"beta": 0.05}, report=_policy_report),
        Loss(
            name="gspo",
            value=_gspo,
            inputs={**_POLICY, "sequence_ratio_mask": Input()},
            active=_has_advantage,
            config=_clip(1 - 3e-4, 1 + 4e-4),  # of the paper, arXiv:2507.18071
            fault=_empty_mask,
            report=_policy_report,
        ),
    )
}
CUSTOM = "custom"  # the loss that a client defines: `engine.custom_loss`
_NAMES = ", ".join([*LOSSES, CUSTOM])


def find(name: str) -> Loss:
    """The loss called `name`."""
    if name in LOSSES:
        return LOSSES[name]
    if name == "stable_reinforce":
        raise OpError(
            f"this engine has no loss 'stable_reinforce', because its objective is not published; "
            f"it has {_NAMES}"
        )
    if name == CUSTOM:
        raise OpError(
            "the loss 'custom' needs loss_fn_config['loss_id'], the id that create_custom_loss gave"
        )
    raise OpError(f"this engine has no loss {name[:60]!r}; it has {_NAMES}")


def settings(loss: Loss, config: Mapping[str, float | str]) -> dict[str, float]:
    """The loss's settings: its defaults, and what `config` says instead."""
    values = dict(loss.config)
    allowed = ", ".join(sorted([*loss.config, *loss.config_texts])) or "none"
    for key, value in config.items():
        if key in loss.config_texts:
            continue
        if key not in values:
            raise OpError(
                f"{loss.name} knows no loss_fn_config key {key[:60]!r}; it allows {allowed}"
            )
        if isinstance(value, str) or not math.isfinite(value):
            raise OpError(
                f"loss_fn_config[{key!r}] is {value!r}; {loss.name} needs a finite number"
            )
        values[key] = value
    low, high = values.get("clip_low_threshold", 0.0), values.get("clip_high_threshold", math.inf)
    if low > high:
        raise OpError(
            f"loss_fn_config has clip_low_threshold {low:g} above clip_high_threshold {high:g}; "
            f"both bound the probability ratio itself, as 0.8 and 1.2 do"
        )
    return values
