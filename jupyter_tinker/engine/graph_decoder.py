"""Reads the graph of a custom loss: a torch.fx trace that a client sent as data.

What a node calls is looked up in `engine.allowed` and nowhere else, and everything is refused that
is not known to be harmless. Whatever the nodes hold, the only error that leaves is `OpError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..wire.ops import OpError
from ..wire.tinker import CustomLossNode
from . import allowed
from .allowed import Allowed, Growth
from .graph import MAX_INT, Graph, Ref, Step, short

_MAX_NODES = 1000
_MAX_VALUES = 20_000  # constants, references and lists among the arguments of all nodes
_MAX_DEPTH = 6  # of lists within lists
_MAX_TEXT = 100  # characters

_METRIC = re.compile(r"custom/[a-z0-9_./-]{1,64}:(sum|mean)")
_CONSTANTS: dict[str, Mapping[str, Any]] = {
    "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
    "dtype": allowed.DTYPES,
    "device": {"cpu": torch.device("cpu")},
    "layout": {"strided": torch.strided},
    "memory_format": {
        "contiguous_format": torch.contiguous_format,
        "preserve_format": torch.preserve_format,
    },
}
# Keyword arguments that would change what a function writes to or draws from.
_NOT_GIVEN = ("out", "generator", "pin_memory", "names", "requires_grad")
_GETATTR = ("getattr", "builtins.getattr")


def decode(nodes: Sequence[CustomLossNode], inputs: Sequence[str]) -> Graph:
    """Check a graph's nodes and look up what they call. Raises `OpError` that names the node."""
    if len(nodes) > _MAX_NODES:
        raise OpError(f"the graph has {len(nodes)} nodes; a custom loss may have {_MAX_NODES}")
    return _Decoder(tuple(inputs)).decode(nodes)


class _Decoder:
    def __init__(self, inputs: tuple[str, ...]) -> None:
        self.inputs = inputs
        self.index: dict[str, int] = {}  # of the nodes so far, by name
        self.values_left = _MAX_VALUES

    def decode(self, nodes: Sequence[CustomLossNode]) -> Graph:
        placeholders = [node.target for node in nodes if node.op == "placeholder"]
        first = [node.target for node in nodes[: len(self.inputs)] if node.op == "placeholder"]
        if tuple(placeholders) != self.inputs or first != placeholders:
            raise OpError(
                f"the graph must begin with one placeholder for each input, in their order: "
                f"{', '.join(self.inputs)}"
            )
        if [index for index, node in enumerate(nodes) if node.op == "output"] != [len(nodes) - 1]:
            raise OpError("the graph must end with its one output node")
        for node in nodes[: len(self.inputs)]:
            self._name(node)
        steps = tuple(self._step(node) for node in nodes[len(self.inputs) : -1])
        loss, metrics = self._output(nodes[-1])
        return Graph(self.inputs, steps, loss, metrics)

    def _name(self, node: CustomLossNode) -> None:
        if node.name in self.index:
            raise OpError(f"two nodes of the graph have the name {short(node.name)}")
        self.index[node.name] = len(self.index)

    def _step(self, node: CustomLossNode) -> Step:
        where = f"node {short(node.name)} ({short(node.target)})"
        try:
            args = tuple(self._value(value, _MAX_DEPTH) for value in node.args)
            kwargs = {key: self._value(value, _MAX_DEPTH) for key, value in node.kwargs.items()}
            for key in _NOT_GIVEN:
                if kwargs.get(key) not in (None, False):
                    raise ValueError(f"the argument {key} is not allowed")
            if isinstance(kwargs.get("device"), str) and kwargs["device"] != "cpu":
                raise ValueError("a custom loss is computed on the CPU; leave device out")
            function = self._function(node, args)
        except ValueError as error:
            raise OpError(f"{where}: {error}") from None
        if node.target in _GETATTR:
            args = args[:1]
        self._name(node)
        return Step(node.name, node.target, function, args, kwargs)

    def _function(self, node: CustomLossNode, args: tuple[Any, ...]) -> Allowed:
        if node.op == "call_function" and node.target in _GETATTR:
            return _attribute(args, node.kwargs)
        if node.op == "call_function" and (known := allowed.FUNCTIONS.get(node.target)):
            return known
        if node.op == "call_method" and (known := allowed.METHODS.get(node.target)):
            return known
        if node.op == "call_method":
            raise ValueError(f"the tensor method {short(node.target)} is not allowed")
        if node.op == "call_function":
            raise ValueError(f"the function {short(node.target)} is not allowed")
        raise ValueError(f"a node of kind {short(node.op)} is not allowed")

    def _value(self, value: Any, depth: int) -> Any:
        self.values_left -= 1
        if self.values_left < 0:
            raise ValueError(f"the graph has more than {_MAX_VALUES} arguments")
        if depth == 0:
            raise ValueError(f"its arguments are nested more than {_MAX_DEPTH} deep")
        if isinstance(value, dict):
            return self._tagged(value, depth)
        if isinstance(value, list):
            return [self._value(item, depth - 1) for item in value]
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise ValueError("it has too long a text among its arguments")
        if isinstance(value, int) and abs(value) > MAX_INT:
            raise ValueError("it has a number among its arguments that needs more than 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("numbers that are not finite are sent as {'float': 'inf'}")
        return value

    def _tagged(self, value: dict[str, Any], depth: int) -> Any:
        if len(value) != 1:
            raise ValueError(f"it has an argument of unknown form, with {len(value)} keys")
        ((kind, content),) = value.items()
        if kind == "ref":
            return self._ref(content)
        if kind == "tuple" and isinstance(content, list):
            return tuple(self._value(item, depth - 1) for item in content)
        if kind == "slice" and isinstance(content, list) and len(content) == 3:
            return slice(*(self._value(item, depth - 1) for item in content))
        if kind == "ellipsis" and content is True:
            return ...
        known = _CONSTANTS.get(kind, {})
        if isinstance(content, str) and content in known:
            return known[content]
        raise ValueError(f"the argument {short(value)} is not allowed")

    def _ref(self, name: Any) -> Ref:
        if not isinstance(name, str) or name not in self.index:
            raise ValueError(f"it refers to {short(name)}, which is no earlier node")
        return Ref(self.index[name])

    def _output(self, node: CustomLossNode) -> tuple[Ref, dict[str, Ref]]:
        returned = node.args[0] if len(node.args) == 1 else None
        if isinstance(returned, dict) and returned.keys() == {"tuple"}:
            returned = returned["tuple"]
        try:
            loss, metrics = returned  # type: ignore[misc]
            encoded = metrics["dict"].items()
            refs = {key: self._ref(_only(value, "ref")) for key, value in encoded}
            result = self._ref(_only(loss, "ref"))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise OpError(
                "the output node must return a tuple of the loss and a dictionary of metrics, each "
                "of them the result of a node"
            ) from None
        for key in refs:
            if not _METRIC.fullmatch(key):
                raise OpError(
                    f"the metric {short(key)} must be called custom/<name>:sum or "
                    f"custom/<name>:mean, in lower case"
                )
        return result, refs


def _only(value: Any, key: str) -> Any:
    if not isinstance(value, dict) or value.keys() != {key}:
        raise ValueError
    return value[key]


def _attribute(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Allowed:
    name = args[1] if len(args) == 2 and not kwargs else None
    of_tensor = allowed.TENSOR_ATTRIBUTES.get(name) if isinstance(name, str) else None
    of_pair = allowed.PAIR_ATTRIBUTES.get(name) if isinstance(name, str) else None

    def read(value: Any) -> Any:
        if of_tensor is not None and isinstance(value, torch.Tensor):
            return of_tensor(value)
        if of_pair is not None and type(value).__module__ == "torch.return_types":
            return of_pair(value)
        raise TypeError(f"a {type(value).__name__} has no attribute {name!r} that is allowed here")

    if of_tensor is None and of_pair is None:
        raise ValueError(f"the attribute {short(name)} is not allowed")
    return Allowed(read, Growth.BROADCAST)
