"""Losses that clients define: the graph of `engine.graph` as a loss like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ..wire import tinker
from ..wire.ops import OpError
from . import losses
from .graph import Budget, Graph
from .graph_decoder import decode
from .losses import CUSTOM, Config, Input, Loss, Tensors, Value

_MAX_DEFINITION = 1 << 20  # characters


@dataclass(frozen=True)
class CustomLoss:
    """A checked definition."""

    name: str
    ranks: Mapping[str, int]  # of its inputs, `logprobs` first
    graph: Graph


@lru_cache(maxsize=64)
def compile(definition: str) -> CustomLoss:
    """Check the JSON of a `wire.tinker.CustomLoss`. Raises `OpError` that says what is wrong."""
    if len(definition) > _MAX_DEFINITION:
        raise OpError(f"the custom loss is longer than {_MAX_DEFINITION} characters")
    try:
        parsed = tinker.parse(tinker.CustomLoss, definition.encode(errors="replace"))
    except tinker.BadRequest as error:
        raise OpError(str(error)) from None
    where = f"custom loss {parsed.name[:60]!r}"
    ranks = {declared.name: declared.rank for declared in parsed.inputs}
    if len(ranks) < len(parsed.inputs):
        raise OpError(f"{where} declares an input twice")
    if parsed.inputs[0].name != "logprobs" or ranks["logprobs"] == 0:
        raise OpError(f"{where} must declare logprobs as its first input, with rank 1 or 2")
    try:
        graph = decode(parsed.graph.nodes, list(ranks))
    except OpError as error:
        raise OpError(f"{where}: {error.message}") from None
    return CustomLoss(parsed.name, ranks, graph)


def find(name: str, definition: str | None) -> Loss:
    """The loss that a request names, which for "custom" comes with its definition."""
    if name == CUSTOM and definition is not None:
        return loss(definition)
    return losses.find(name)


def loss(definition: str) -> Loss:
    """The loss of a definition, for one request."""
    custom, budget = compile(definition), Budget()
    where = f"custom loss {custom.name[:60]!r}"
    ranks = dict(custom.ranks)
    own_rank = ranks.pop("logprobs")

    def value(lp: torch.Tensor, inputs: Tensors, config: Config) -> Value:
        own = lp[:, 0] if own_rank == 1 else lp
        try:
            result, metrics = custom.graph({"logprobs": own, **inputs}, budget)
            _check(result, differentiable=lp.requires_grad)
            return Value(result, {key: _number(key, metric) for key, metric in metrics.items()})
        except OpError as error:
            raise OpError(f"{where}: {error.message}", error.category) from None

    return Loss(
        name=where,
        value=value,
        inputs={
            name: Input(rank=rank) for name, rank in custom.ranks.items() if name != "logprobs"
        },
        config_texts=("loss_id",),
        target_ranks=(own_rank,),
        # The tensors are small and the operations many, and what is out of range is an error
        # there, while on a GPU it would end the engine.
        custom=True,
    )


def _check(result: Any, *, differentiable: bool) -> None:
    if not isinstance(result, torch.Tensor) or not result.is_floating_point():
        raise OpError("it must return its loss as a tensor of floating-point numbers")
    if result.ndim:
        raise OpError(f"it must return a scalar loss, and returns shape {list(result.shape)}")
    if differentiable and not result.requires_grad:
        raise OpError("its loss does not depend on logprobs, so that it has no gradient")


def _number(key: str, metric: Any) -> float:
    if isinstance(metric, torch.Tensor) and metric.numel() == 1:
        return float(metric.detach().item())
    if isinstance(metric, (int, float)):
        return float(metric)
    raise OpError(f"its metric {key!r} must be a scalar")
