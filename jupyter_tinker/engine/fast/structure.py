"""Recognises a model of Llama's structure, by its modules and by what they compute.

Names of architectures decide nothing: the modules must be the known ones and no others, each must
compute what it is taken for, and all together must give the model's own hidden states.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from .. import memory
from ..base_model import BaseModel
from ..joined import join_
from .attention import takes_any_lengths
from .decoder import Decoder
from .layer import HeadNorms, Layer
from .lora import Linear, Lora
from .pointwise import ACTIVATIONS, Activation, RmsNorm, Rotary

_DECODER = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
# Whose angles depend on nothing but the position.
_ROTARY_KINDS = {"default", "linear", "llama3", "yarn"}
_CHECK_LENGTHS = (9, 5)
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
_ATTENTIONS = {"sdpa", "flash_attention_2"}  # which compute the same

_log = logging.getLogger("jupyter_tinker.engine")


class Unknown(Exception):
    """The model is of another structure; says in which way."""


def find(base: BaseModel) -> Decoder | None:
    """What can train on `base` in the place of transformers and PEFT, None if nothing can; and the
    log says which it is."""
    placement = base.placement
    try:
        if base.device.type not in ("cpu", "cuda"):
            raise Unknown(f"that is not known to compute right on {base.device.type}")
        if placement.attention not in _ATTENTIONS:
            raise Unknown(f"the attention asked for is {placement.attention}")
        decoder = recognise(base.model)
        if base.device.type == "cuda":
            _check_flash(base, decoder)
            decoder = _joined(base.model, decoder)
    except Unknown as reason:
        _log.info("%s trains by transformers and PEFT, not without padding: %s.", base.name, reason)
        return None
    _log.info("%s has Llama's structure and trains without padding.", base.name)
    return decoder


def _check_flash(base: BaseModel, decoder: Decoder) -> None:
    """On a GPU other kernels hold whole sequences' scores in memory, or are not known here."""
    size, dtype = decoder.layers[0].head_size, base.placement.torch_dtype
    if not takes_any_lengths(size, base.device, dtype):
        raise Unknown(f"there is no flash attention here for heads of {size} in {dtype}")


def _joined(model: PreTrainedModel, decoder: Decoder) -> Decoder:
    """With the weights that read the same input laid out as one: sampling multiplies by them at
    once, and would copy them otherwise."""
    for layer in decoder.layers:
        for members in ((layer.q, layer.k, layer.v), (layer.gate, layer.up)):
            join_([cast(nn.Linear, model.get_submodule(linear.path)) for linear in members])
    return _decoder(model)


def recognise(model: PreTrainedModel) -> Decoder:
    """The decoder of a frozen model without adapters. Raises `Unknown`."""
    try:
        decoder = _decoder(model)
        _check(model, decoder)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and memory.ran_out(error):
            raise
        raise Unknown(f"it cannot be computed so: {str(error)[:200]}") from error
    return decoder


def _decoder(model: PreTrainedModel) -> Decoder:
    module = model.get_decoder()
    prefix = next(path for path, found in model.named_modules() if found is module)
    _expect(module, _DECODER)
    paths = [f"{prefix}.layers.{number}" for number in range(len(module.layers))]
    layers = [_layer(path, layer) for path, layer in zip(paths, module.layers, strict=True)]
    return Decoder(
        embed=lambda tokens: module.embed_tokens(tokens[None])[0].clone(),
        angles=_angles(module),
        layers=layers,
        norm=_rms_norm(module.norm),
        longest=_longest(model),
    )


def _layer(path: str, layer: nn.Module) -> Layer:
    _expect(layer, _LAYER)
    attention, mlp = layer.self_attn, layer.mlp
    _expect(attention, _ATTENTION | (_HEAD_NORMS if hasattr(attention, "q_norm") else set()))
    _expect(mlp, _MLP)
    if attention.is_causal is not True:
        raise Unknown("its attention is not causal")

    def linear(parent: str, name: str) -> Linear:
        module = getattr(getattr(layer, parent), name)
        if type(module) is not nn.Linear:
            raise Unknown(f"{parent}.{name} is a {type(module).__name__}")
        return Linear(f"{path}.{parent}.{name}", module)

    return Layer(
        norm1=_rms_norm(layer.input_layernorm),
        q=linear("self_attn", "q_proj"),
        k=linear("self_attn", "k_proj"),
        v=linear("self_attn", "v_proj"),
        head_size=attention.head_dim,
        head_norms=_head_norms(attention),
        scale=attention.scaling,
        o=linear("self_attn", "o_proj"),
        norm2=_rms_norm(layer.post_attention_layernorm),
        gate=linear("mlp", "gate_proj"),
        up=linear("mlp", "up_proj"),
        activation=_activation(mlp.act_fn),
        down=linear("mlp", "down_proj"),
    )


def _expect(module: nn.Module, names: set[str]) -> None:
    found = {name for name, _ in module.named_children()}
    if found != names:
        odd = ", ".join(sorted(found ^ names))
        raise Unknown(f"{type(module).__name__} differs in {odd}")


def _rms_norm(module: nn.Module) -> RmsNorm:
    """Gains are stored as they are, or as what they are more than 1."""
    weight = module.weight.detach()
    eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
    if eps is None or list(module.children()) or getattr(module, "bias", None) is not None:
        raise Unknown(f"{type(module).__name__} is no RMSNorm")
    probe = torch.linspace(-2, 3, len(weight), device=weight.device)[None]
    for gain in (weight, 1 + weight.float()):
        norm = RmsNorm(gain, float(eps))
        if torch.allclose(norm(probe), module(probe), 1e-4, 1e-5):
            return norm
    raise Unknown(f"{type(module).__name__} is no RMSNorm")


def _head_norms(attention: nn.Module) -> HeadNorms | None:
    if not hasattr(attention, "q_norm"):
        return None
    norms = HeadNorms(_rms_norm(attention.q_norm), _rms_norm(attention.k_norm))
    if len(norms.q.gain) != attention.head_dim:  # over all heads together
        raise Unknown("queries are not normalised head by head")
    return norms


def _activation(module: nn.Module) -> Activation:
    probe = torch.linspace(-4, 4, 33)
    for known in ACTIVATIONS:
        if torch.allclose(known.forward(probe), module(probe), 1e-5, 1e-6):
            return known
    raise Unknown(f"its activation is {type(module).__name__}")


def _angles(decoder: nn.Module) -> Callable[[torch.Tensor], Rotary]:
    rotary = decoder.rotary_emb
    if rotary.rope_type not in _ROTARY_KINDS:
        raise Unknown(f"its positions are encoded as {rotary.rope_type}")

    def angles(positions: torch.Tensor) -> Rotary:
        like = rotary.inv_freq.new_zeros((), dtype=torch.float32)
        # Both halves of a head turn by the same angles.
        cos, sin = (t[0, :, None].chunk(2, dim=-1)[0] for t in rotary(like, positions[None]))
        return Rotary(cos.contiguous(), sin.contiguous())

    return angles


def _longest(model: PreTrainedModel) -> int | None:
    """Beyond a sliding window a token does not see all before it."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if odd := kinds - {"full_attention", "sliding_attention"}:
        raise Unknown(f"it has layers of {', '.join(sorted(odd))}")
    window = getattr(config, "sliding_window", None)
    return int(window) if window is not None and "sliding_attention" in kinds else None


def _check(model: PreTrainedModel, decoder: Decoder) -> None:
    """Several sequences, several positions: whatever else the model does, it shows."""
    generator = torch.Generator().manual_seed(0)
    vocab = model.config.get_text_config().vocab_size
    longest = decoder.longest or max(_CHECK_LENGTHS)
    lengths = [min(length, longest) for length in _CHECK_LENGTHS]
    tokens = torch.randint(vocab, (sum(lengths),), generator=generator).to(model.device)
    with torch.no_grad():
        got = decoder.forward(tokens, lengths, Lora({}, 1.0), keep=False).hidden
        parts = [
            model.get_decoder()(input_ids=part[None], use_cache=False).last_hidden_state[0]
            for part in tokens.split(lengths)
        ]
    expected = torch.cat(parts).float()
    size = torch.linalg.vector_norm(expected)
    if not torch.linalg.vector_norm(got - expected) <= _TOLERANCES[model.dtype] * size:
        raise Unknown("its hidden states come about in another way")
