"""A base model: loaded from a local folder, frozen, shared by the adapters of many runs.

Knows which of its linear layers can carry an adapter, and which run's adapter is switched on.
Knows nothing of losses, optimizers or where the folder came from.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..wire.ops import EngineOptions, OpError
from . import stored
from .batch import Limits
from .loading import counted_weights
from .logprobs import OutputLayer
from .placement import Placement
from .progress import Report, unheard
from .wrappers import Wrappers

if TYPE_CHECKING:
    from .fast.decoder import Decoder
    from .fast.recorder import Recorder

Part = Literal["attn", "mlp", "unembed"]

# Written by whoever saved the folder; they say nothing about the model.
_PASSING_CONFIG_KEYS = ("transformers_version", "_name_or_path", "_model_name_or_path", "use_cache")


@dataclass(frozen=True)
class Projection:
    """A linear layer that can carry an adapter."""

    path: str
    part: Part
    in_features: int
    out_features: int


class BaseModel:
    """A frozen causal language model and the facts about it that training needs."""

    def __init__(self, name: str, path: Path, model: PreTrainedModel, placement: Placement) -> None:
        self.name = name
        self.path = path
        self.model = model
        self.placement = placement
        self.device = placement.torch_device
        self.projections = _projections(model)
        self.has_fused_experts = _has_fused_experts(model)
        self.output_layer = _output_layer(model)
        self.limits = _limits(model)
        self.fingerprint = _fingerprint(path, model)
        self.decoder: Decoder | None = None  # that trains in the place of transformers and PEFT
        self.recorder: Recorder | None = None  # of the decoder's passes, where that is of use
        self.wrappers = Wrappers(model)  # of PEFT, where there is no decoder
        _check_output_layer(self)

    @property
    def is_tied(self) -> bool:
        """Whether the output layer's weight is the embedding's."""
        return self.output_layer.weight is self.model.get_input_embeddings().weight

    def hidden_states(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T) tokens -> (B, T, H), what the output layer reads."""
        decoder = self.model.get_decoder()
        return decoder(input_ids=tokens, use_cache=False).last_hidden_state


def load(
    name: str,
    path: Path,
    options: EngineOptions,
    placement: Placement,
    report: Report = unheard,
) -> BaseModel:
    """The base model in the folder `path`."""
    if not (path / "config.json").is_file():
        raise OpError(f"base model {name!r} is not at {path}: no config.json there", "server")
    kernels = [placement.attention]
    if options.attention == "auto":
        kernels += [kernel for kernel in ("sdpa", "eager") if kernel not in kernels]
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        placement = placement.of_model(stored.dtype_of(path, config))
        with counted_weights(f"loading {name}", report):
            model = _from_pretrained(path, placement.torch_dtype, kernels)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a wrong file makes transformers raise is open-ended
        raise OpError(
            f"base model {name!r} could not be loaded from {path}: {str(error)[:500]}", "server"
        ) from error
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False
    return BaseModel(name, path, model.to(placement.torch_device), placement)


def _from_pretrained(path: Path, dtype: torch.dtype, kernels: list[str]) -> PreTrainedModel:
    """Loads with the first attention kernel that the architecture has."""
    with _quiet():
        for kernel in kernels:
            try:
                model, report = AutoModelForCausalLM.from_pretrained(
                    path,
                    dtype=dtype,
                    attn_implementation=kernel,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    output_loading_info=True,
                )
                break
            except ValueError as error:
                if "attention" not in str(error) or kernel == kernels[-1]:
                    raise
    # transformers fills weights it does not find with random numbers.
    absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if absent:
        raise ValueError(f"its files lack {len(absent)} weights, such as {absent[0]}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and notices out of whatever cell is attached."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _projections(model: PreTrainedModel) -> list[Projection]:
    """Every linear layer of every decoder layer, then the output layer, in the model's order."""
    found = []
    output = model.get_output_embeddings()
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if module is not output and isinstance(module, nn.Linear) and _layer_depth(path):
            part: Part = "attn" if _in_attention(path, modules) else "mlp"
            found.append(Projection(path, part, module.in_features, module.out_features))
    for path, module in modules.items():
        if module is output and isinstance(module, nn.Linear):
            found.append(Projection(path, "unembed", module.in_features, module.out_features))
    return found


def _layer_depth(path: str) -> int:
    """How many names down the path the numbered decoder layer is; 0 outside of them."""
    names = path.split(".")
    return next((depth for depth, name in enumerate(names, 1) if name.isdigit()), 0)


def _in_attention(path: str, modules: dict[str, nn.Module]) -> bool:
    names = path.split(".")
    inside = range(_layer_depth(path) + 1, len(names) + 1)
    ancestors = (".".join(names[:depth]) for depth in inside)
    labels = (f"{a.rpartition('.')[2]} {type(modules[a]).__name__}".lower() for a in ancestors)
    return any("attn" in label or "attention" in label for label in labels)


def _has_fused_experts(model: PreTrainedModel) -> bool:
    return any("expert" in name and p.dim() == 3 for name, p in model.named_parameters())


def _output_layer(model: PreTrainedModel) -> OutputLayer:
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    if not isinstance(layer, nn.Linear):
        raise OpError(
            f"{type(model).__name__} has no linear output layer; choose another base model"
        )
    scale = getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0)
    return OutputLayer(
        weight=layer.weight,
        bias=layer.bias,
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _check_output_layer(base: BaseModel) -> None:
    """Refuses an architecture that does more to its logits than `OutputLayer` knows of."""
    tokens = torch.arange(min(4, base.limits.vocab_size), device=base.device)[None]
    with torch.no_grad():
        expected = base.model(input_ids=tokens, use_cache=False).logits[0].float()
        got = base.output_layer.logits(base.hidden_states(tokens)[0])
    tolerance = 1e-4 if base.placement.dtype == "float32" else 3e-2
    if (got - expected).abs().max() > tolerance * expected.abs().max():
        raise OpError(
            f"{type(base.model).__name__} computes its logits in a way this engine does not know; "
            f"choose another base model"
        )


def _limits(model: PreTrainedModel) -> Limits:
    config = model.config.get_text_config()
    # Architectures without position embeddings set no limit of their own.
    context = getattr(config, "max_position_embeddings", None) or sys.maxsize
    return Limits(vocab_size=config.vocab_size, context_length=context)


def _fingerprint(path: Path, model: PreTrainedModel) -> dict[str, Any]:
    """What must agree between a checkpoint's base model and this one."""
    config = json.loads((path / "config.json").read_text())
    lasting = {key: value for key, value in config.items() if key not in _PASSING_CONFIG_KEYS}
    text = model.config.get_text_config()
    return {
        "architecture": type(model).__name__,
        "hidden_size": text.hidden_size,
        "layers": text.num_hidden_layers,
        "vocab_size": text.vocab_size,
        "config_sha256": hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest(),
    }
