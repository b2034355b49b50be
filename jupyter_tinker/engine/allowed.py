"""What the graph of a custom loss may call, and how large a result may get.

A name that is not listed here does not exist for a graph: nothing is looked up by a name that a
client chose. Left out are functions that read or write anything but tensors, that draw random
numbers, that change a tensor in place, that give values of no defined content (`empty`), whose
result has a size that depends on values (`nonzero`), or whose cost is not about that of their size
(decompositions, sorting aside).
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F


class Growth(Enum):
    """How the size of a result is bounded before it is computed."""

    BROADCAST = auto()  # no larger than the tensor arguments broadcast together
    JOIN = auto()  # no larger than the tensor arguments together
    SHAPE = auto()  # asked of the function itself, by tensors that have a shape and no memory
    FACTORY = auto()  # the same, of a function that takes no tensor
    INDEX = auto()  # indexing: by numbers and slices no larger, else asked
    PRODUCT = auto()  # asked, and the work is that of a matrix product


@dataclass(frozen=True)
class Allowed:
    """A function that a graph may call."""

    call: Callable[..., Any]
    growth: Growth
    operands_only: bool = False  # takes tensors and numbers, and nothing else


# Functions of torch that are methods of Tensor as well.
_EVERYWHERE = """
abs acos acosh add addcdiv addcmul all amax amin any argmax argmin argsort asin asinh atan atan2
atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max clamp_min clip clone
copysign cos cosh count_nonzero cummax cummin cumsum deg2rad detach digamma div divide eq erf erfc
erfinv exp exp2 expm1 fix flatten flip floor floor_divide fmax fmin fmod frac ge greater
greater_equal gt heaviside hypot isclose isfinite isinf isnan kthvalue ldexp le lerp less
less_equal lgamma log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp logical_and
logical_not logical_or logical_xor logit logsumexp lt masked_fill max maximum mean median min
minimum movedim mul multiply nan_to_num nanmean nanmedian nansum ne neg negative not_equal numel
permute positive pow prod rad2deg ravel reciprocal relu remainder reshape roll round rsqrt sigmoid
sign signbit sin sinc sinh softmax sort sqrt square squeeze std sub subtract sum swapaxes swapdims
t tan tanh topk transpose tril triu true_divide trunc unsqueeze var xlogy
"""
_METHODS = """
bfloat16 bool contiguous dim double expand_as float half int long nelement ndimension reshape_as
size type_as view_as
"""
_FUNCTIONS = "cosine_similarity full_like ones_like std_mean var_mean zeros_like"
_SPECIAL = "entr erf erfc expit expm1 log1p log_ndtr log_softmax logit logsumexp ndtr softmax xlogy"
_NN_FUNCTIONAL = """
binary_cross_entropy binary_cross_entropy_with_logits celu cosine_similarity elu gelu hardtanh
hinge_embedding_loss huber_loss kl_div l1_loss leaky_relu log_softmax logsigmoid
margin_ranking_loss mish mse_loss normalize poisson_nll_loss relu relu6 selu sigmoid silu
smooth_l1_loss soft_margin_loss softmax softmin softplus softsign tanh threshold
"""
_JOINED = "cat concat concatenate hstack stack vstack"
_SHAPED = "broadcast_to gather index_select narrow outer select take take_along_dim tile"
_SHAPED_METHODS = "expand new_full new_ones new_zeros repeat"
_FACTORIES = "arange eye full linspace ones zeros"
_PRODUCTS = "bmm dot inner matmul mm mv"
_OPERATORS = """
abs add and_ eq floordiv ge gt inv invert le lt mod mul ne neg or_ pos pow sub truediv xor
"""
_DIVISIONS = "div divide floor_divide floordiv fmod mod remainder"
_MATH = "ceil cos exp expm1 fabs floor isqrt log log10 log1p log2 sin sqrt tan tanh"

_DTYPES = "float16 bfloat16 float32 float64 uint8 int8 int16 int32 int64 bool"

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in _DTYPES.split()}

# `builtins.getattr` on a tensor, and on what torch returns where it returns several.
TENSOR_ATTRIBUTES: Mapping[str, Callable[[torch.Tensor], Any]] = {
    "shape": lambda x: x.shape,
    "dtype": lambda x: x.dtype,
    "device": lambda x: x.device,
    "ndim": lambda x: x.ndim,
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
}
PAIR_ATTRIBUTES: Mapping[str, Callable[[Any], Any]] = {
    "values": lambda pair: pair.values,
    "indices": lambda pair: pair.indices,
}


def _where(condition: torch.Tensor, input: Any, other: Any) -> torch.Tensor:
    """Without the form of one argument, whose result has a size that depends on values."""
    return torch.where(condition, input, other)


def _where_method(self: torch.Tensor, condition: torch.Tensor, other: Any) -> torch.Tensor:
    return torch.where(condition, self, other)


def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if any(isinstance(value, str) and value != "cpu" for value in (*args, *kwargs.values())):
        raise ValueError("a custom loss is computed on the CPU; leave its tensors there")
    return self.to(*args, **kwargs)


def _view(self: torch.Tensor, *shape: Any) -> torch.Tensor:
    """Without the form that reads the same bits as another kind of number."""
    if any(isinstance(value, torch.dtype) for value in shape):
        raise ValueError("view takes a shape here; convert with .to(dtype)")
    return self.view(*shape)


def _norm(input: torch.Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False) -> Any:
    """Without the nuclear norm, which decomposes the matrix."""
    if isinstance(p, str) and p != "fro":
        raise ValueError(f"the norm {p[:20]!r} is not allowed; use p=1, p=2 or another number")
    return torch.linalg.vector_norm(input, 2 if p in ("fro", None) else p, dim, keepdim)


def _pad(input: torch.Tensor, pad: Any, mode: str = "constant", value: Any = None) -> torch.Tensor:
    return F.pad(input, pad, mode, value)


def _power(base: Any, exponent: Any) -> Any:
    """Python's whole numbers have no largest: here they do."""
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 64:
        raise ValueError(f"{base} ** {exponent} is too large")
    return operator.pow(base, exponent)


def _no_trap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Whole-number division without -1: the least number by -1 makes the processor end us."""

    def checked(dividend: Any, divisor: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(dividend, torch.Tensor) or isinstance(divisor, torch.Tensor):
            kind = torch.result_type(dividend, divisor)
            if not kind.is_floating_point and (torch.as_tensor(divisor).to(kind) == -1).any():
                raise ValueError("whole numbers are not divided by -1 here; negate them")
        return function(dividend, divisor, *args, **kwargs)

    return checked


def _out_of_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing the `inplace` that some of torch.nn.functional have."""
    if not inspect.isfunction(function):
        return function
    signature = inspect.signature(function)
    if "inplace" not in signature.parameters:
        return function

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if signature.bind(*args, **kwargs).arguments.get("inplace"):
            raise ValueError("inplace=True is not allowed; use what the function returns")
        return function(*args, **kwargs)

    return checked


def _functions() -> dict[str, Allowed]:
    table: dict[str, Allowed] = {}

    def allow(module: Any, prefix: str, names: str, growth: Growth, **more: bool) -> None:
        for name in names.split():
            function = getattr(module, name)
            table[f"{prefix}.{name}"] = Allowed(_out_of_place(function), growth, **more)
            # torch.fx names some functions by the private module they are made in.
            home = getattr(function, "__module__", None) or ""
            if home.startswith("torch."):
                table[f"{home}.{function.__name__}"] = table[f"{prefix}.{name}"]

    allow(torch, "torch", _EVERYWHERE + _FUNCTIONS, Growth.BROADCAST)
    allow(torch, "torch", _JOINED, Growth.JOIN)
    allow(torch, "torch", _SHAPED, Growth.SHAPE)
    allow(torch, "torch", _FACTORIES, Growth.FACTORY)
    allow(torch, "torch", _PRODUCTS, Growth.PRODUCT)
    allow(torch.special, "torch.special", _SPECIAL, Growth.BROADCAST)
    allow(torch.linalg, "torch.linalg", "vector_norm", Growth.BROADCAST)
    allow(F, "torch.nn.functional", _NN_FUNCTIONAL, Growth.BROADCAST)
    allow(F, "torch.nn.functional", "cross_entropy nll_loss", Growth.JOIN)
    allow(operator, "operator", _OPERATORS, Growth.BROADCAST, operands_only=True)
    allow(operator, "operator", "matmul", Growth.PRODUCT, operands_only=True)
    allow(math, "math", _MATH, Growth.BROADCAST, operands_only=True)
    table["operator.pow"] = Allowed(_power, Growth.BROADCAST, operands_only=True)
    for name in _DIVISIONS.split():
        for key in (f"torch.{name}", f"operator.{name}"):
            if key in table:
                table[key] = replace(table[key], call=_no_trap(table[key].call))
    table["operator.getitem"] = Allowed(operator.getitem, Growth.INDEX)
    table["torch.where"] = Allowed(_where, Growth.BROADCAST)
    table["torch.norm"] = table["torch.functional.norm"] = Allowed(_norm, Growth.BROADCAST)
    pad = Allowed(_pad, Growth.SHAPE)
    table["torch.nn.functional.pad"] = table["torch._C._nn.pad"] = pad
    return table


def _methods() -> dict[str, Allowed]:
    names = {
        Growth.BROADCAST: _EVERYWHERE + _METHODS,
        Growth.SHAPE: _SHAPED + " " + _SHAPED_METHODS,
        Growth.PRODUCT: _PRODUCTS,
    }
    table = {
        name: Allowed(getattr(torch.Tensor, name), growth)
        for growth, group in names.items()
        for name in group.split()
    }
    for name in _DIVISIONS.split():
        if name in table:
            table[name] = replace(table[name], call=_no_trap(table[name].call))
    table["where"] = Allowed(_where_method, Growth.BROADCAST)
    table["view"] = Allowed(_view, Growth.BROADCAST)
    table["to"] = Allowed(_to, Growth.BROADCAST)
    table["norm"] = Allowed(_norm, Growth.BROADCAST)
    return table


FUNCTIONS: Mapping[str, Allowed] = _functions()
METHODS: Mapping[str, Allowed] = _methods()
