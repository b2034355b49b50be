"""What the graph of a custom loss may not take: memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from jupyter_tinker.engine import allowed, graph
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire.ops import OpError

from .graphs import LP, ROW, backward, call, check, datum, method, ref
from .graphs import graph as loss_of
from .reference import Client

HUGE = 10**9


@pytest.fixture(scope="module")
def client(models: Callable[[str], Path]) -> Client:
    client = Client(Engine(), models("untied"))
    client.create()
    return client


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
