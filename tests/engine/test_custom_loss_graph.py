"""What the graph of a custom loss may not do: reach beyond tensors, or take memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_tinker.engine import allowed, graph
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire.ops import OpError

from .graphs import LP, MADE, backward, call, check, datum, method, node, ref
from .graphs import graph as loss_of
from .reference import Client

HUGE = 10**9
ROW: dict[str, Any] = {
    "tokens": [3, 4, 5],
    "target_tokens": np.array([4, 5, 6]),
    "weights": np.array([1, 2, 3], np.float32),
}


@pytest.fixture(scope="module")
def client(models: Callable[[str], Path]) -> Client:
    client = Client(Engine(), models("untied"))
    client.create()
    return client


NAMES = [
    "os.system",
    "os.path.join",
    "sys.exit",
    "subprocess.run",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "builtins.print",
    "builtins.__import__",
    "builtins.setattr",
    "eval",
    "torch.load",
    "torch.save",
    "torch.hub.load",
    "torch.compile",
    "torch.jit.script",
    "torch.ops.load_library",
    "torch.ops.aten.exp",
    "torch.classes.load_library",
    "torch.utils.cpp_extension.load",
    "torch.set_num_threads",
    "torch.set_default_device",
    "torch.set_grad_enabled",
    "torch.manual_seed",
    "torch.from_file",
    "torch.from_numpy",
    "torch.frombuffer",
    "torch.tensor",
    "torch.rand",
    "torch.randn_like",
    "torch.bernoulli",
    "torch.dropout",
    "torch.nn.functional.dropout",
    "torch.empty",
    "torch.empty_like",
    "torch.nonzero",
    "torch.unique",
    "torch.masked_select",
    "torch.einsum",
    "torch.kron",
    "torch.linalg.svd",
    "torch.combinations",
    "torch.cuda.empty_cache",
    "torch.exp_",
    "torch.autograd.grad",
    "torch._C._nn.one_hot",
    "torch.__builtins__",
    "torch.exp.__globals__",
    "operator.attrgetter",
    "operator.methodcaller",
    "operator.itemgetter",
    "operator.setitem",
    "operator.delitem",
    "operator.iadd",
    "operator.concat",
    "operator.lshift",
    "operator.call",
    "math.factorial",
    "math.comb",
    "math.perm",
    "",
    "exp",
    "torch",
    "torch.",
]
METHODS = [
    "backward",
    "item",
    "tolist",
    "numpy",
    "exp_",
    "add_",
    "copy_",
    "set_",
    "resize_",
    "fill_",
    "requires_grad_",
    "retain_grad",
    "register_hook",
    "share_memory_",
    "pin_memory",
    "cuda",
    "storage",
    "untyped_storage",
    "data_ptr",
    "apply_",
    "map_",
    "index_put_",
    "__setitem__",
    "__reduce_ex__",
    "__class__",
    "__dict__",
    "bernoulli",
    "multinomial",
    "nonzero",
    "unique",
    "split",
    "svd",
    "to_sparse",
    "as_strided",
    "new_empty",
    "new_tensor",
    "type",
    "",
]
ATTRIBUTES = [
    "__class__",
    "__dict__",
    "__globals__",
    "__reduce__",
    "data",
    "grad",
    "grad_fn",
    "_base",
    "is_cuda",
    "requires_grad",
    "backward",
    "real",
    "exp",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_functions_that_are_not_listed_are_refused_by_name(client: Client, name: str) -> None:
    with pytest.raises(OpError, match="is not allowed") as caught:
        check(client, loss_of(call(name, LP)))
    assert repr(name)[:50] in caught.value.message
    assert caught.value.category == "user"


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_are_not_listed_are_refused_by_name(client: Client, name: str) -> None:
    with pytest.raises(OpError, match=f"the tensor method {name!r} is not allowed"):
        check(client, loss_of(method(name, LP)))


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("getattr_", ["getattr", "builtins.getattr"])
def test_attributes_that_are_not_listed_are_refused_by_name(
    client: Client, getattr_: str, name: str
) -> None:
    with pytest.raises(OpError, match=f"the attribute {name!r} is not allowed"):
        check(client, loss_of(call(getattr_, LP, name)))


def test_nothing_on_the_list_reaches_beyond_tensors() -> None:
    """A second look at the data: what is listed must not be what the lists above leave out."""
    for name in [*allowed.FUNCTIONS, *allowed.METHODS]:
        last = name.rpartition(".")[2]
        assert last not in METHODS
        assert not last.startswith("__")
        assert not last.endswith("_") or last in ("and_", "or_")
        for word in ("rand", "load", "save", "empty", "seed", "compile", "grad", "storage"):
            assert word not in last
    assert not set(allowed.FUNCTIONS) & set(NAMES)
    assert not set(allowed.TENSOR_ATTRIBUTES) & set(ATTRIBUTES)


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


RUN = {
    "inplace": call("torch.nn.functional.relu", LP, inplace=True),
    "inplace by position": call("torch.nn.functional.leaky_relu", LP, 0.1, True),
    "to another device": method("to", LP, "meta"),
    "to a device by name": method("to", LP, device="cuda"),
    "the nuclear norm": method("norm", LP, "nuc"),
    "where of one": call("torch.where", LP),
    "zeros": call("torch.zeros", HUGE),
    "zeros of many dimensions": call("torch.zeros", [HUGE] * 4),
    "zeros beyond numbers": call("torch.zeros", [2**62, 2**62]),
    "ones": call("torch.ones", {"tuple": [10**5, 10**5]}),
    "full": call("torch.full", [HUGE], 1.0),
    "eye": call("torch.eye", 10**5),
    "arange": call("torch.arange", HUGE),
    "arange of small steps": call("torch.arange", 0.0, 1.0, 1e-12),
    "linspace": call("torch.linspace", 0, 1, HUGE),
    "new_zeros": method("new_zeros", LP, HUGE),
    "new_zeros with a device": method("new_zeros", LP, HUGE, device={"device": "cpu"}),
    "new_full": method("new_full", LP, [HUGE], 1.0),
    "expand": method("expand", LP, HUGE, 3),
    "broadcast_to": call("torch.broadcast_to", LP, [HUGE, 3]),
    "repeat": method("repeat", LP, HUGE),
    "tile": call("torch.tile", LP, [HUGE]),
    "pad": call("torch.nn.functional.pad", LP, [0, HUGE]),
    "padding by the private name": call("torch._C._nn.pad", LP, [0, HUGE]),
    "a power of whole numbers": call("operator.pow", 7, 10**8),
    "a list times": call("operator.mul", [1, 2], 2**40),
    "a text times": call("operator.mul", "x", 2**40),
    "a format": call("operator.mod", "%1000000000d", 1),
    "an index of a text": call("operator.getitem", "text", 0),
    "a whole number of many bits": call("operator.mul", 2**62, 2**62),
    "a view of the bits": method("view", LP, {"dtype": "int32"}),
    "a complex number": call("operator.pow", -1.0, 0.5),
    "a wrong type": call("torch.exp", None),
    "too few arguments": call("torch.exp"),
    "an unknown keyword": call("torch.exp", LP, colour="red"),
    "division by zero": call("operator.truediv", 1, 0),
    "a method of a number": method("exp", 3),
}


@pytest.mark.parametrize("case", RUN)
def test_what_is_refused_before_it_is_computed(client: Client, case: str) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    with pytest.raises(OpError) as caught:
        backward(client, loss_of(RUN[case]), [datum(**ROW)])
    assert caught.value.category == "user"
    assert "Traceback" not in caught.value.message
    assert process.memory_info().rss - before < 2**28
    assert not client.gradients.any()


@pytest.mark.parametrize("name", ["operator.floordiv", "operator.mod", "torch.fmod", "torch.div"])
def test_division_of_whole_numbers_does_not_end_the_process(name: str) -> None:
    """The least 64-bit number divided by -1 raises a signal on common processors."""
    script = f"""
import torch
from jupyter_tinker.engine.allowed import FUNCTIONS
least = torch.full((100, 2), -2**63)[:, 0]
more = {{"rounding_mode": "floor"}} if {name!r} == "torch.div" else {{}}
for divisor in (-1, torch.full((100,), -1)):
    try:
        FUNCTIONS[{name!r}].call(least, divisor, **more)
    except ValueError as error:
        print(error)
"""
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not divided by -1") == 2


def test_division_of_whole_numbers_otherwise_works() -> None:
    halves = allowed.FUNCTIONS["operator.floordiv"].call(torch.arange(6), 2)
    assert halves.tolist() == [0, 0, 1, 1, 2, 2]
    assert allowed.METHODS["remainder"].call(torch.arange(4), 2).tolist() == [0, 1, 0, 1]


def doubling(times: int, *, start: Any = LP) -> list[dict[str, Any]]:
    """Each node twice as large as the one before."""
    nodes, last = [], start
    for i in range(times):
        nodes.append(call("torch.cat", [last, last], name=f"cat_{i}"))
        last = ref(f"cat_{i}")
    nodes.append(method("sum", last, name="made"))
    return nodes


GROWING = {
    "cat": doubling(60),
    "outer": [
        method("unsqueeze", LP, 0, name="row"),
        *(
            made
            for i in range(20)
            for made in (
                method("reshape", ref("row" if i == 0 else f"sum_{i - 1}"), [1, -1], name=f"r_{i}"),
                method("reshape", ref(f"r_{i}"), [-1, 1], name=f"c_{i}"),
                call("operator.add", ref(f"r_{i}"), ref(f"c_{i}"), name=f"sum_{i}"),
            )
        ),
        method("sum", ref("sum_19"), name="made"),
    ],
    "index": [
        call("operator.getitem", LP, [0, 1, 2] * 1000, name="g_0"),
        call("torch.outer", ref("g_0"), ref("g_0"), name="g_1"),
        call("operator.getitem", ref("g_1"), [0, 1, 2] * 5000, name="g_2"),
        method("sum", ref("g_2"), name="made"),
    ],
    "whole numbers": [
        call("operator.pow", 3, 30, name="p_0"),
        *(
            call("operator.mul", ref(f"p_{i}"), ref(f"p_{i}"), name=f"p_{i + 1}")
            for i in range(100)
        ),
        call("operator.mul", LP, ref("p_100"), name="made"),
    ],
    "many that are not too large each": [
        *(call("torch.zeros", 2**22, name=f"z_{i}") for i in range(40)),
        method("sum", ref("z_39"), name="made"),
    ],
    "matrix products": [
        call("torch.ones", [2000, 2000], name="m"),
        call("torch.matmul", ref("m"), ref("m"), name="n"),
        method("sum", ref("n"), name="made"),
    ],
}


@pytest.mark.parametrize("case", GROWING)
def test_growth_is_stopped(client: Client, case: str) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    with pytest.raises(OpError, match=r"too large|more than 64 bits"):
        backward(client, loss_of(*GROWING[case]), [datum(**ROW)])
    assert process.memory_info().rss - before < 2**30


def test_a_request_has_a_budget_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = loss_of(call("torch.exp", LP))
    monkeypatch.setattr(graph, "_MAX_REQUEST_CELLS", 3 * 3 * 4)
    backward(client, loss, [datum(**ROW)] * 4)
    with pytest.raises(OpError, match=r"datum 4: .*too much work; send smaller batches"):
        backward(client, loss, [datum(**ROW)] * 5)
    monkeypatch.undo()
    monkeypatch.setattr(graph, "_MAX_REQUEST_STEPS", 3 * 4)
    backward(client, loss, [datum(**ROW)] * 4)
    with pytest.raises(OpError, match=r"datum 4: .*too long for so many"):
        backward(client, loss, [datum(**ROW)] * 5)
    client.zero_grad()


def test_the_number_of_nodes_and_arguments(client: Client) -> None:
    many = [call("torch.exp", LP, name=f"n_{i}") for i in range(1000)]
    with pytest.raises(OpError, match="1006 nodes; a custom loss may have 1000"):
        check(client, loss_of(*many, call("torch.exp", LP)))
    with pytest.raises(OpError, match="more than 20000 arguments"):
        check(client, loss_of(call("torch.stack", [LP] * 30_000)))
    with pytest.raises(OpError, match="longer than 1048576"):
        check(client, loss_of(call("torch.exp", LP), name="x" * 2**20))
    with pytest.raises(OpError, match="two nodes"):
        check(client, loss_of(call("torch.exp", LP), call("torch.exp", LP)))


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
        assert np.isfinite(answer.metrics["loss:sum"])
    client.zero_grad()


def test_all_that_is_listed_is_found(client: Client) -> None:
    for name in allowed.FUNCTIONS:
        check(client, loss_of(call(name, LP)))
    for name in allowed.METHODS:
        check(client, loss_of(method(name, LP)))
