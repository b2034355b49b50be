"""A merged model as a GGUF file, in the layout that llama.cpp gives to models of its architecture.

Tensors are written one after another, so that no more than the base model is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from transformers import AutoConfig

from ..wire.ops import OpError
from . import gguf_vocabulary
from .gguf_vocabulary import Vocabulary
from .merge import Merged, finite

_ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
}
_TYPES = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_ROPE_FACTORS = "rope_freqs.weight"


def check(base: Path, dtype: str) -> Vocabulary:
    """Refuse, before anything is loaded, a model or dtype that cannot be written. Raises `OpError`.

    Returns the model's vocabulary.
    """
    if dtype not in _TYPES:
        raise OpError(f"there is no dtype {dtype!r}; GGUF is written in {', '.join(_TYPES)}")
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    named = (config.architectures or ["no named architecture"])[0]
    if named not in _ARCHITECTURES:
        raise OpError(
            f"GGUF files are not written of {named}, only of {' and '.join(_ARCHITECTURES)}; "
            f"export with --merged, and let llama.cpp convert the folder"
        )
    _check_config(config)
    return gguf_vocabulary.read(base, config.vocab_size)


def write(
    merged: Merged,
    vocabulary: Vocabulary,
    file: Path,
    name: str,
    dtype: str,
    report: Callable[[float], None] = lambda done: None,
) -> None:
    """Write `merged`, whose base model and `dtype` passed `check`. Raises `OpError`."""
    architecture = _ARCHITECTURES[type(merged.model).__name__]
    writer = GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    try:
        _add_metadata(writer, merged.model.config, name, dtype)
        vocabulary.write(writer)
        _write_tensors(writer, merged, architecture, dtype, report)
    finally:
        writer.close()


def _add_metadata(writer: GGUFWriter, config: Any, name: str, dtype: str) -> None:
    head = _head_dim(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(_TYPES[dtype][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if _rope_type(config) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _write_tensors(
    writer: GGUFWriter,
    merged: Merged,
    architecture: gguf.MODEL_ARCH,
    dtype: str,
    report: Callable[[float], None],
) -> None:
    names = _gguf_names(merged, architecture)
    shapes = merged.model.state_dict()
    factors = _rope_factors(merged.model)
    if factors is not None:
        writer.add_tensor_info(_ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for name, theirs in names.items():
        kind = _kind(shapes[name], dtype)
        layout = _byte_shape(tuple(shapes[name].shape), kind, name)
        size = int(np.prod(layout))
        writer.add_tensor_info(theirs, layout, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for number, name in enumerate(names):
        report(number / len(names))
        value = merged.tensor(name)
        kind = _kind(value, dtype)
        if dtype in _HALF and value.dim() > 1:
            finite(value.to(_HALF[dtype]), name, dtype)
        if architecture is gguf.MODEL_ARCH.LLAMA:
            value = _interleaved(value, name, merged.model.config)
        data = gguf.quants.quantize(np.ascontiguousarray(value.numpy()), kind)
        writer.write_tensor_data(data.view(np.uint8))


def _gguf_names(merged: Merged, architecture: gguf.MODEL_ARCH) -> dict[str, str]:
    """llama.cpp's names of all parameters, by the model's own."""
    known = gguf.get_tensor_name_map(architecture, merged.model.config.num_hidden_layers)
    names = {}
    for name in merged.names():
        theirs = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise OpError(f"GGUF has no place for {name}; export with --merged")
        names[name] = theirs
    return names


def _kind(value: torch.Tensor, dtype: str) -> GGMLQuantizationType:
    """Norms and biases are small, and always float32."""
    return _TYPES[dtype][0] if value.dim() > 1 else GGMLQuantizationType.F32


def _byte_shape(shape: tuple[int, ...], kind: GGMLQuantizationType, name: str) -> tuple[int, ...]:
    try:
        return gguf.quant_shape_to_byte_shape(shape, kind)
    except ValueError:
        raise OpError(
            f"{name} has rows of {shape[-1]} numbers, and {kind.name} packs 32 at a time; choose "
            f"another --dtype"
        ) from None


def _interleaved(value: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """Rows of queries and keys in llama.cpp's order for Llama.

    Rotary embedding turns pairs of a head's rows. transformers pairs row i with row i + half,
    llama.cpp row 2i with row 2i + 1.
    """
    if ".q_proj." in name:
        heads = config.num_attention_heads
    elif ".k_proj." in name:
        heads = config.num_key_value_heads
    else:
        return value
    halves = value.reshape(heads, 2, -1, *value.shape[1:])  # (heads, 2, half a head, ...)
    return halves.transpose(1, 2).reshape(value.shape)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope_type(config: Any) -> str:
    return config.rope_parameters.get("rope_type", "default")


def _rope_factors(model: Any) -> np.ndarray | None:
    """What llama.cpp divides a Llama 3's frequencies by: the model's own, out of plain ones."""
    config = model.config
    if _rope_type(config) != "llama3":
        return None
    scaled = model.get_decoder().rotary_emb.inv_freq.double()  # (half a head,)
    powers = torch.arange(0, _head_dim(config), 2, dtype=torch.float64) / _head_dim(config)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** powers
    return (plain / scaled).float().numpy()


def _check_config(config: Any) -> None:
    """Refuse what llama.cpp's graph of these architectures does not compute."""
    rope = ("default", "linear") + (("llama3",) if config.model_type == "llama" else ())
    sliding = getattr(config, "use_sliding_window", False)
    biased = getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    whole = config.rope_parameters.get("partial_rotary_factor", 1.0) == 1.0
    for wrong, what in (
        (_rope_type(config) not in rope, f"rotary embeddings of type {_rope_type(config)}"),
        (not whole, "rotary embeddings of a part of each head"),
        (sliding, "sliding-window attention"),
        (biased, f"biases in a {config.model_type}"),
        (config.hidden_act != "silu", f"the activation {config.hidden_act}"),
    ):
        if wrong:
            raise OpError(f"GGUF files are not written of models with {what}; use --merged")
