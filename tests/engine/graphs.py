"""Custom losses as the SDK sends them, and by hand as it never would."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tinker.lib.public_interfaces.custom_loss import LossHandle, encode_graph, trace_loss

from jupyter_tinker.wire import ops
from jupyter_tinker.wire import tinker_pb2 as pb

from .reference import Answer, Client, request, tensor, text


def trace(function: Callable[..., Any], **ranks: int) -> LossHandle:
    return trace_loss(function, ranks, "session")


def definition(handle: LossHandle) -> str:
    body = {
        "name": handle.name,
        "inputs": [loss_input.model_dump() for loss_input in handle.inputs],
        "graph": encode_graph(handle).model_dump(),
    }
    return json.dumps(body)


def node(op: str, name: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "name": name, "target": target, "args": list(args), "kwargs": kwargs}


def call(target: str, *args: Any, name: str = "made", **kwargs: Any) -> dict[str, Any]:
    return node("call_function", name, target, *args, **kwargs)


def method(target: str, *args: Any, name: str = "made", **kwargs: Any) -> dict[str, Any]:
    return node("call_method", name, target, *args, **kwargs)


def ref(name: str) -> dict[str, str]:
    return {"ref": name}


LP = ref("logprobs")
MADE = ref("made")
# A datum with the input that `graph` declares.
ROW: dict[str, Any] = {
    "tokens": [3, 4, 5],
    "target_tokens": np.array([4, 5, 6]),
    "weights": np.array([1, 2, 3], np.float32),
}


def graph(*nodes: Mapping[str, Any], **changes: Any) -> str:
    """A loss of `logprobs` and `weights`: these nodes, then the sum of `made` times logprobs."""
    body = {
        "name": "hand-made",
        "inputs": [{"name": "logprobs", "rank": 1}, {"name": "weights", "rank": 1}],
        "graph": {
            "format": 1,
            "nodes": [
                node("placeholder", "logprobs", "logprobs"),
                node("placeholder", "weights", "weights"),
                *nodes,
                call("operator.mul", MADE, LP, name="product"),
                method("sum", ref("product"), name="loss"),
                node("output", "output", "output", {"tuple": [ref("loss"), {"dict": {}}]}),
            ],
        },
    }
    return json.dumps({**body, **changes})


def check(client: Client, loss: str) -> None:
    client.engine.handle(ops.CheckCustomLoss(definition=loss))


def datum(tokens: Sequence[int], **arrays: np.ndarray) -> pb.Datum:
    made = pb.Datum(model_input=[text(tokens)])
    for name, array in arrays.items():
        made.loss_fn_inputs[name].CopyFrom(tensor(array))
    return made


def backward(client: Client, loss: str, data: Sequence[pb.Datum], **fields: Any) -> Answer:
    config = {"loss_id": pb.LossConfigValue(text="any")}
    body = request(data, loss_fn="custom", loss_fn_config_v2=config, **fields)
    return client.send(body, custom_loss=loss)
