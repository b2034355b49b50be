"""The graphs of custom losses: whatever is sent as one is run, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_tinker.engine import allowed
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire.ops import OpError

from .graphs import LP, MADE, ROW, backward, call, check, datum, method, node, ref
from .graphs import graph as loss_of
from .reference import Client


@pytest.fixture(scope="module")
def client(models: Callable[[str], Path]) -> Client:
    client = Client(Engine(), models("untied"))
    client.create()
    return client


ARGUMENTS = {
    "out": call("torch.exp", LP, out=ref("weights")),
    "generator": call("torch.exp", LP, generator=LP),
    "requires_grad": call("torch.zeros", 3, requires_grad=True),
    "another device": call("torch.zeros", 3, device="cuda"),
    "a constant device": call("torch.zeros", 3, device={"device": "cuda"}),
    "the meta device": call("torch.zeros", 3, device={"device": "meta"}),
    "an unknown dtype": call("torch.zeros", 3, dtype={"dtype": "load"}),
    "a complex dtype": call("torch.zeros", 3, dtype={"dtype": "complex64"}),
    "a sparse layout": call("torch.zeros", 3, layout={"layout": "sparse_coo"}),
    "a dictionary": call("torch.exp", {"dict": {}}),
    "two keys": call("torch.exp", {"ref": "logprobs", "tuple": []}),
    "no key": call("torch.exp", {}),
    "an unknown key": call("torch.exp", {"module": "os"}),
    "a later node": call("torch.exp", ref("loss")),
    "itself": call("torch.exp", MADE),
    "no node": call("torch.exp", ref("nothing")),
    "a reference that is a list": call("torch.exp", {"ref": []}),
    "a getattr of three": call("getattr", LP, "nothing", 1),
    "a getattr of a node": call("getattr", LP, LP),
    "a getattr by keywords": call("getattr", LP, "shape", default=1),
    "a long text": call("torch.exp", "x" * 1000),
    "a large number": call("torch.exp", 2**70),
    "deep lists": call("torch.exp", [[[[[[[[[]]]]]]]]]),
    "a module": node("call_module", "made", "linear", LP),
    "an attribute of the graph": node("get_attr", "made", "constant"),
    "a second placeholder": node("placeholder", "made", "logprobs"),
    "a second output": node("output", "made", "output", LP),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_and_nodes_that_are_refused(client: Client, case: str) -> None:
    with pytest.raises(OpError) as caught:
        check(client, loss_of(ARGUMENTS[case]))
    assert caught.value.category == "user"
    assert "hand-made" in caught.value.message


HEADS = {
    "no inputs": {"inputs": []},
    "too many inputs": {"inputs": [{"name": f"i{i}", "rank": 1} for i in range(17)]},
    "no logprobs": {"inputs": [{"name": "weights", "rank": 1}]},
    "logprobs of no rank": {"inputs": [{"name": "logprobs", "rank": 0}]},
    "a rank of three": {"inputs": [{"name": "logprobs", "rank": 3}]},
    "an odd name": {"inputs": [{"name": "Logprobs!", "rank": 1}]},
    "an input twice": {"inputs": [{"name": "logprobs", "rank": 1}] * 2},
    "other inputs than placeholders": {"inputs": [{"name": "logprobs", "rank": 1}]},
    "another format": {"graph": {"format": 2, "nodes": []}},
    "no nodes": {"graph": {"format": 1, "nodes": []}},
    "no graph": {"graph": None},
    "nodes that are none": {"graph": {"format": 1, "nodes": [1, "x", None]}},
}


@pytest.mark.parametrize("case", HEADS)
def test_definitions_that_are_refused(client: Client, case: str) -> None:
    with pytest.raises(OpError) as caught:
        check(client, loss_of(call("torch.exp", LP), **HEADS[case]))
    assert caught.value.category == "user"


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 10**5, '{"name": NaN}', "\ud800"])
def test_what_is_no_definition(client: Client, text: str) -> None:
    with pytest.raises(OpError):
        check(client, text)


OUTPUTS: list[Any] = [
    ref("loss"),
    {"tuple": [ref("loss")]},
    {"tuple": [ref("loss"), {"dict": {}}, 1]},
    {"tuple": [1.0, {"dict": {}}]},
    {"tuple": [ref("loss"), []]},
    {"tuple": [ref("loss"), {"dict": {"loss:sum": ref("loss")}}]},
    {"tuple": [ref("loss"), {"dict": {"custom/x": ref("loss")}}]},
    {"tuple": [ref("loss"), {"dict": {"custom/x:max": ref("loss")}}]},
    {"tuple": [ref("loss"), {"dict": {"custom/X:sum": ref("loss")}}]},
    {"tuple": [ref("loss"), {"dict": {"custom/x:sum\n": ref("loss")}}]},
    {"tuple": [ref("loss"), {"dict": {"custom/x:sum": 1.0}}]},
    None,
    "loss",
]


@pytest.mark.parametrize("returned", OUTPUTS, ids=str)
def test_outputs_that_are_refused(client: Client, returned: Any) -> None:
    body = json.loads(loss_of(call("torch.exp", LP)))
    body["graph"]["nodes"][-1]["args"] = [returned]
    with pytest.raises(OpError, match=r"output node|metric"):
        check(client, json.dumps(body))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["logprobs", "weights", "made", "shape", "T", "values", "cpu", "sum"]),
)
TAGS = ["ref", "tuple", "dict", "slice", "ellipsis", "float", "dtype", "device", "layout", "x"]
VALUES = st.recursive(
    SCALARS | st.sampled_from([LP, ref("weights"), {"dtype": "int64"}, {"float": "inf"}]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(TAGS), inner),
    max_leaves=8,
)
TARGETS = st.sampled_from(
    [*allowed.FUNCTIONS, *allowed.METHODS, "getattr", "os.system", "output", "logprobs"]
)
KEYS = st.sampled_from(["dim", "dtype", "device", "out", "keepdim", "min", "p", "x"])
NODES = st.builds(
    lambda op, name, target, args, kwargs: node(op, name, target, *args, **kwargs),
    st.sampled_from(["call_function", "call_method", "placeholder", "output", "get_attr", ""]),
    st.sampled_from(["made", "a", "b", "c", "logprobs"]),
    TARGETS,
    st.lists(VALUES | st.just(LP), max_size=4),
    st.dictionaries(KEYS, VALUES, max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(nodes=st.lists(NODES, max_size=4), returned=VALUES)
@pytest.mark.filterwarnings("ignore")
def test_any_graph_is_run_or_refused(client: Client, nodes: list[Any], returned: Any) -> None:
    body = json.loads(loss_of(*nodes))
    if returned is not None:
        body["graph"]["nodes"][-1]["args"] = [returned]
    _run_or_refuse(client, json.dumps(body))


@settings(max_examples=600, deadline=None)
@given(
    target=TARGETS,
    args=st.lists(VALUES | st.just(LP), max_size=3),
    kwargs=st.dictionaries(KEYS, VALUES, max_size=1),
    is_method=st.booleans(),
)
@pytest.mark.filterwarnings("ignore")
def test_any_call_is_run_or_refused(
    client: Client, target: str, args: list[Any], kwargs: dict[str, Any], is_method: bool
) -> None:
    make = method if is_method else call
    _run_or_refuse(client, loss_of(make(target, LP, *args, **kwargs)))


@settings(max_examples=200, deadline=None)
@given(text=st.text() | VALUES.map(json.dumps) | st.dictionaries(st.text(), VALUES).map(json.dumps))
def test_any_text_is_refused(client: Client, text: str) -> None:
    with pytest.raises(OpError):
        check(client, text)


def _run_or_refuse(client: Client, loss: str) -> None:
    try:
        answer = backward(client, loss, [datum(**ROW)])
    except OpError:
        assert not client.gradients.any()
    else:
        if answer.stats.not_finite is None:
            assert np.isfinite(answer.metrics["loss:sum"])
        else:
            assert not client.gradients.any()
    client.zero_grad()
