"""What the graph of a custom loss may call: what is listed, and nothing beyond tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_tinker.engine import allowed
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.wire.ops import OpError

from .graphs import LP, call, check, method
from .graphs import graph as loss_of
from .reference import Client


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


def test_all_that_is_listed_is_found(client: Client) -> None:
    for name in allowed.FUNCTIONS:
        check(client, loss_of(call(name, LP)))
    for name in allowed.METHODS:
        check(client, loss_of(method(name, LP)))
