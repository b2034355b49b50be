"""A prompt's way through the model: hidden states and attention of one layer.

While a trace computes, some modules of the base model have another `forward`. What was changed is
listed before it is changed, and `Tracer.tidy` takes back whatever an interrupted trace has left.
Knows nothing of kernels, and of runs only their adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .adapter import Adapter
from .base_model import BaseModel
from .wrappers import plain

_MOST_ATTENTION_BYTES = 1 << 30


@dataclass(frozen=True, repr=False)
class Trace:
    """What one decoder layer makes of a prompt of T tokens. All tensors are copies on the CPU."""

    tokens: list[int]
    texts: list[str]  # of each token
    layer: int  # counted from 0
    hidden: (
        torch.Tensor
    )  # (T, H), what the layer hands on; in the dtype that the engine computes in
    attention: torch.Tensor | None  # (heads, T, T), rows look at columns; None: not asked for
    run: str | None  # whose adapter took part; None: the base model alone

    def __repr__(self) -> str:
        whose = "the base model" if self.run is None else f"run {self.run}"
        shapes = f"hidden {tuple(self.hidden.shape)}"
        if self.attention is not None:
            shapes += f", attention {tuple(self.attention.shape)}"
        return f"Trace of {len(self.tokens)} tokens through layer {self.layer} of {whose}: {shapes}"

    def figure(self, head: int | None = None) -> Any:
        """Attention as a plotly heat map: of one head, or the mean of all. Raises `ValueError`
        where the trace has no attention."""
        if self.attention is None:
            raise ValueError("this trace was made with attention=False")
        shares = self.attention.float()
        shares = shares.mean(0) if head is None else shares[head]
        go: Any = import_module("plotly.graph_objects")
        # Numbered, since a text may come twice and an axis would make one of both.
        names = [f"{i} {text}" for i, text in enumerate(self.texts)]
        figure = go.Figure(go.Heatmap(z=shares.tolist(), x=names, y=names, colorscale="Viridis"))
        which = "mean of all heads" if head is None else f"head {head}"
        figure.update_layout(
            title=f"Attention of layer {self.layer}, {which}",
            xaxis_title="looked at",
            yaxis={"title": "looks", "autorange": "reversed"},
        )
        return figure


class Tracer:
    """Takes traces, one at a time."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []  # of what is changed now; each may be done twice

    def hidden(
        self, base: BaseModel, adapter: Adapter | None, tokens: Sequence[int], layer: int
    ) -> torch.Tensor:
        """(T,) tokens -> (T, H), what a layer hands on: to the last bit as training has it, or up
        to rounding where `fast` trains in the place of transformers."""
        path = layers(base)[layer]
        with self._changed(base, adapter), torch.no_grad():
            taken = self._take_from(base.model.get_submodule(path))
            base.hidden_states(torch.tensor([list(tokens)], device=base.device))
        return _copy(_first(taken[0])[0])

    def attention(
        self, base: BaseModel, adapter: Adapter | None, tokens: Sequence[int], layer: int
    ) -> torch.Tensor:
        """(T,) tokens -> (heads, T, T) shares, as the architecture's plain attention computes them.

        Raises `ValueError` where they would take too much memory, or where it gives none.
        """
        config = base.model.config.get_text_config()
        size = 4 * config.num_attention_heads * len(tokens) ** 2
        if size > _MOST_ATTENTION_BYTES:
            raise ValueError(
                f"the attention between {len(tokens)} tokens takes {size >> 20} MiB a layer; trace "
                f"a shorter prompt, or with attention=False"
            )
        path = _attention_path(base, layers(base)[layer])
        with self._changed(base, adapter), torch.no_grad():
            taken = self._take_from(base.model.get_submodule(path))
            # The fused kernels never have the shares in memory.
            kernel = config._attn_implementation
            self._undo.append(partial(setattr, config, "_attn_implementation", kernel))
            config._attn_implementation = "eager"
            base.hidden_states(torch.tensor([list(tokens)], device=base.device))
        shares = taken[0][1] if isinstance(taken[0], tuple) else None
        if not isinstance(shares, torch.Tensor):
            raise ValueError(f"{type(base.model).__name__} does not tell its attention")
        return _copy(shares[0])

    def tidy(self) -> None:
        """Have the model as it was."""
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    @contextmanager
    def _changed(self, base: BaseModel, adapter: Adapter | None) -> Iterator[None]:
        """Inside, this adapter takes part and no other; `base` does not learn of it, so that
        training finds switched on what it had switched on."""
        try:
            for projection in base.projections:
                module = base.model.get_submodule(projection.path)
                self._replace(module, _forward(projection.path, module, adapter))
            yield
        finally:
            self.tidy()

    def _take_from(self, module: nn.Module) -> list[Any]:
        """A list that gets what `module` returns."""
        taken: list[Any] = []
        forward = module.forward

        @wraps(forward)
        def taking(*arguments: Any, **more: Any) -> Any:
            taken.append(forward(*arguments, **more))
            return taken[-1]

        self._replace(module, taking)
        return taken

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        # On the instance, where it hides the method of its class.
        self._undo.append(partial(module.__dict__.pop, "forward", None))
        module.__dict__["forward"] = forward


def layers(base: BaseModel) -> list[str]:
    """Paths of the decoder layers, in their order."""
    paths = {layer_of(p.path)[0]: None for p in base.projections if p.part != "unembed"}
    return sorted(paths, key=lambda path: int(path.rpartition(".")[2]))


def layer_of(path: str) -> tuple[str, str]:
    """A path cut behind the decoder layer's number; the first part is empty outside of layers."""
    names = path.split(".")
    cut = next((i for i, name in enumerate(names, 1) if name.isdigit()), 0)
    return ".".join(names[:cut]), ".".join(names[cut:])


def _attention_path(base: BaseModel, layer: str) -> str:
    for projection in base.projections:
        if projection.part == "attn" and layer_of(projection.path)[0] == layer:
            return f"{layer}.{layer_of(projection.path)[1].partition('.')[0]}"
    raise ValueError(f"the layer {layer} has no attention")


def _forward(
    path: str, module: nn.Module, adapter: Adapter | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the layer at `path` computes with this adapter and no other, in PEFT's order of
    operations."""
    inner = plain(module)
    compute = inner.forward if inner is module else inner
    if adapter is None or f"{path}.lora_A.weight" not in adapter.views:
        return compute
    a, b = (adapter.views[f"{path}.{side}.weight"] for side in ("lora_A", "lora_B"))
    scale = adapter.spec.scale

    def forward(x: torch.Tensor) -> torch.Tensor:
        out = compute(x)
        return (out + F.linear(F.linear(x.to(a.dtype), a), b) * scale).to(out.dtype)

    return forward


def _first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
