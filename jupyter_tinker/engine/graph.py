"""Runs the graph of a custom loss, and bounds what that may cost.

A graph is a straight line of calls. The size of every result is bounded before it is computed, so
that none can take the engine's memory or time. Whatever goes wrong, the only error that leaves this
module is `OpError`, save that memory ran out. Knows nothing of losses or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..wire.ops import OpError
from .allowed import Allowed, Growth

MAX_INT = 2**63 - 1
_MAX_ITEMS = 1000  # of a tuple that a node returns
# A datum's results in all, some 512 MiB; and the work that one request may ask for.
_MAX_CELLS = 1 << 26
_MAX_REQUEST_CELLS = 1 << 32
_MAX_REQUEST_STEPS = 1 << 21


@dataclass(frozen=True)
class Ref:
    """The result of an earlier node."""

    index: int


@dataclass(frozen=True)
class Step:
    """A call; its arguments may hold `Ref`s."""

    name: str
    target: str
    function: Allowed
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Budget:
    """What the graphs of one request may still cost."""

    def __init__(self) -> None:
        self.request_cells = _MAX_REQUEST_CELLS
        self.steps = _MAX_REQUEST_STEPS
        self.cells = _MAX_CELLS

    def new_datum(self, steps: int) -> None:
        self.cells = _MAX_CELLS
        self.steps -= steps
        if self.steps < 0:
            raise OpError("the graph is too long for so many datums; send smaller batches")

    def take(self, cells: int) -> None:
        self.cells -= cells
        self.request_cells -= cells
        if self.cells < 0:
            raise ValueError(f"its result is too large: a datum may use {_MAX_CELLS} cells in all")
        if self.request_cells < 0:
            raise ValueError("the batch asks for too much work; send smaller batches")


@dataclass(frozen=True)
class Graph:
    """A checked graph."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    loss: Ref
    metrics: Mapping[str, Ref]

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], budget: Budget
    ) -> tuple[Any, dict[str, Any]]:
        """The loss and metrics, as the graph returns them. Raises `OpError`."""
        budget.new_datum(len(self.steps))
        values: list[Any] = [inputs[name] for name in self.inputs]
        for step in self.steps:
            values.append(_perform(step, values, budget))
        return values[self.loss.index], {k: values[ref.index] for k, ref in self.metrics.items()}


def _perform(step: Step, values: Sequence[Any], budget: Budget) -> Any:
    def value_of(x: Any) -> Any:
        return values[x.index] if isinstance(x, Ref) else x

    try:
        args, kwargs = _map(value_of, (step.args, dict(step.kwargs)))
        if step.function.operands_only:
            _check_operands(args, kwargs)
        if step.function.growth is Growth.INDEX:
            args = _indexing(*args, budget=budget)
        budget.take(_cells(step.function, args, kwargs))
        result = step.function.call(*args, **kwargs)
        _check_result(result)
        return result
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0][:300] or type(error).__name__
        raise OpError(f"node {short(step.name)} ({short(step.target)}) failed: {reason}") from None


def _check_operands(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Lists and texts can be multiplied and formatted to any size."""
    if kwargs or not all(isinstance(arg, (torch.Tensor, int, float)) for arg in args):
        kinds = ", ".join(type(arg).__name__ for arg in args)
        raise TypeError(f"it takes tensors and numbers, and was given {kinds}")


def _cells(function: Allowed, args: Any, kwargs: Any) -> int:
    """No fewer than the result has, without computing it."""
    tensors = list(_tensors((args, kwargs)))
    if function.growth is Growth.BROADCAST:
        return _broadcast_cells(tensors)
    if function.growth is Growth.JOIN:
        return sum(tensor.numel() for tensor in tensors)
    if function.growth is Growth.INDEX and len(tensors) < 2:
        return sum(tensor.numel() for tensor in tensors)
    args, kwargs = _map(_without_memory, (args, kwargs))
    if function.growth is Growth.FACTORY or "device" in kwargs:
        kwargs = {**kwargs, "device": "meta"}
    with torch.no_grad():
        ghosts = function.call(*args, **kwargs)
    cells = sum(ghost.numel() for ghost in _tensors(ghosts))
    if function.growth is Growth.PRODUCT:
        cells *= max(1, *(tensor.shape[-1] for tensor in tensors if tensor.ndim))
    return cells


def _broadcast_cells(tensors: Sequence[torch.Tensor]) -> int:
    shapes = {tensor.shape for tensor in tensors}
    if len(shapes) == 1:
        return tensors[0].numel()
    dimensions = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (dimensions - len(shape)) + tuple(shape) for shape in shapes]
    return math.prod(max(sizes) for sizes in zip(*padded, strict=True))


def _indexing(container: Any, index: Any, *, budget: Budget) -> tuple[Any, Any]:
    """The index with its masks replaced by the positions they pick, whose number is known."""
    if not isinstance(container, torch.Tensor):
        if not isinstance(index, (int, slice)):
            raise TypeError("a tuple is indexed by a number")
        return container, index
    parts: list[Any] = []
    for part in index if isinstance(index, tuple) else (index,):
        part = torch.tensor(part) if isinstance(part, list) else part
        if isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8):
            budget.take(part.numel() * part.ndim)
            parts.extend(part.nonzero(as_tuple=True))
        else:
            parts.append(part)
    return container, tuple(parts)


def _check_result(value: Any) -> None:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_complex() or value.device.type != "cpu":
            raise TypeError(f"its result is a tensor of {value.dtype}, which is not allowed")
    elif isinstance(value, (tuple, list)):
        if len(value) > _MAX_ITEMS:
            raise ValueError(f"it returns {len(value)} values; {_MAX_ITEMS} are allowed")
        for item in value:
            if not isinstance(item, (torch.Tensor, int)):
                raise TypeError(f"it returns a {type(item).__name__} among others")
            _check_result(item)
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise ValueError("its result is a whole number that needs more than 64 bits")
    elif not isinstance(value, (int, float, torch.dtype, torch.device)):
        raise TypeError(f"its result is a {type(value).__name__}, which is not allowed")


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """The value with `change` done to whatever is in its lists, tuples, slices and dictionaries."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(_map(change, item) for item in value)
    if kind is dict:
        return {key: _map(change, item) for key, item in value.items()}
    if kind is slice:
        return slice(*(_map(change, item) for item in (value.start, value.stop, value.step)))
    return change(value)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, slice):
        yield from _tensors((value.start, value.stop, value.step))


def _without_memory(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
