"""GGUF files, read back by transformers, by gguf, and by our own converter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from jupyter_tinker.engine import convert, export, gguf_file
from jupyter_tinker.wire.ops import OpError
from tests.conftest import CHAT_TEMPLATE, REPOSITORY

from .reference import load_peft
from .test_export import load_whole, logits, relative_difference, train_and_save

_SHAPE = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# As the tokenizer.json of Llama 3, Qwen2, SmolLM2 and GPT-2 spell them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")


def _split(rule: str) -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(rule), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


_STEPS: dict[str, Callable[[], list[Any]]] = {
    "llama-bpe": lambda: _split(_LLAMA3),
    "qwen2": lambda: _split(_QWEN2),
    "smollm": lambda: [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


def save_tokenizer(
    folder: Path, rules: str = "gpt-2", *, add_bos: bool = False
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(_STEPS[rules]())
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8") + " 2024 12345" * 9
    backend.train_from_iterator(text.splitlines(), trainer)
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_base(folder: Path, architecture: str, **config: Any) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        if architecture == "llama":
            model = LlamaForCausalLM(LlamaConfig(**_SHAPE | config))
        else:
            model = Qwen2ForCausalLM(Qwen2Config(**_SHAPE | config))
            for layer in model.model.layers:  # which transformers begins at zero
                for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                    torch.nn.init.normal_(projection.bias)
    model.save_pretrained(folder)
    return folder


_BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_theta": 5000.0, "tie_word_embeddings": False}),
    "llama, tied": ("llama", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {"rope_theta": 1e6, "tie_word_embeddings": False}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
}


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape([int(n) for n in t.shape[::-1]])
        for t in gguf.GGUFReader(file).tensors
    }


def field(file: Path, name: str) -> Any:
    return gguf.GGUFReader(file).fields[name].contents()


@pytest.mark.parametrize("kind", _BASES)
@pytest.mark.parametrize("train_unembed", [True, False])
def test_transformers_reads_the_same_logits(tmp_path: Path, kind: str, train_unembed: bool) -> None:
    architecture, config = _BASES[kind]
    base = make_base(tmp_path / "base", architecture, **config)
    save_tokenizer(base)
    checkpoint = train_and_save(base, tmp_path / "checkpoint", train_unembed=train_unembed)
    export.write_gguf(checkpoint, "tiny", base, tmp_path / "m.gguf", "float32")
    model = load_whole(tmp_path, gguf_file="m.gguf")
    expected = logits(load_peft(base, checkpoint).eval())
    assert relative_difference(expected, logits(model)) < 1e-5
    assert model.config.tie_word_embeddings == ("tied" in kind and not train_unembed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_the_merged_folders(tmp_path: Path, dtype: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    save_tokenizer(base)
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    export.write_gguf(checkpoint, "tiny", base, tmp_path / "m.gguf", dtype)
    export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", dtype)
    ours = load_whole(tmp_path, gguf_file="m.gguf").state_dict()
    for name, value in load_whole(tmp_path / "merged").state_dict().items():
        assert torch.equal(value, ours[name]), name


def test_q8_0_is_within_half_a_step_of_each_block(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama", tie_word_embeddings=True)
    save_tokenizer(base)
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    for dtype in ("float32", "q8_0"):
        export.write_gguf(checkpoint, "tiny", base, tmp_path / f"{dtype}.gguf", dtype)
    exact, packed = read_tensors(tmp_path / "float32.gguf"), read_tensors(tmp_path / "q8_0.gguf")
    assert exact.keys() == packed.keys()
    for name, value in exact.items():
        if value.ndim == 1:
            assert np.array_equal(value, packed[name]), name
            continue
        blocks, got = value.reshape(-1, 32), packed[name].reshape(-1, 32)
        step = np.abs(blocks).max(1, keepdims=True) / 127
        # The step itself is kept in float16, which moves the largest values by up to 2^-11.
        assert (np.abs(blocks - got) <= step / 2 + np.abs(blocks) * 2**-11 + 1e-7).all(), name
        assert not np.array_equal(value, packed[name]), name
    sizes = [(tmp_path / f"{dtype}.gguf").stat().st_size for dtype in ("float32", "q8_0")]
    assert sizes[1] < 0.5 * sizes[0]


def test_rotary_factors_give_the_frequencies_of_llama_3(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    base = make_base(tmp_path / "base", "llama", rope_parameters=rope)
    save_tokenizer(base)
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    export.write_gguf(checkpoint, "tiny", base, tmp_path / "m.gguf", None)
    factors = read_tensors(tmp_path / "m.gguf")["rope_freqs.weight"]
    assert factors[0] == 1.0  # turns faster than any context is long: as in training
    assert factors[-1] == pytest.approx(8.0)  # slower: stretched
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    scaled = load_whole(base).model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(plain / factors, scaled, rtol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_linear_scaling_is_told(tmp_path: Path, architecture: str) -> None:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    base = make_base(tmp_path / "base", architecture, rope_parameters=rope)
    save_tokenizer(base)
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    export.write_gguf(checkpoint, "tiny", base, tmp_path / "m.gguf", None)
    assert field(tmp_path / "m.gguf", f"{architecture}.rope.scaling.type") == "linear"
    assert field(tmp_path / "m.gguf", f"{architecture}.rope.scaling.factor") == 4.0


@pytest.mark.parametrize("rules", _STEPS)
@pytest.mark.parametrize("add_bos", [True, False])
def test_the_tokenizer_comes_back(tmp_path: Path, rules: str, add_bos: bool) -> None:
    base = make_base(tmp_path / "base", "qwen2" if rules == "qwen2" else "llama")
    save_tokenizer(base, rules, add_bos=add_bos)
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    file = tmp_path / "m.gguf"
    export.write_gguf(checkpoint, "tiny", base, file, None)
    assert field(file, "tokenizer.ggml.pre") == rules
    ours = AutoTokenizer.from_pretrained(base)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    # Of SmolLM2's rules transformers reads the name only, and digits come out together.
    numbers = "" if rules == "smollm" else " 2024 and 12345"
    text = f"<|im_start|>It's  naïve,\n\n the copyright<|im_end|>holder <think>s{numbers}"
    assert theirs(text).input_ids == ours(text).input_ids
    assert (theirs(text).input_ids[:2] == [1, 1]) == add_bos
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert field(file, "tokenizer.ggml.add_bos_token") is add_bos
    tokens = field(file, "tokenizer.ggml.tokens")
    types = field(file, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == 384
    assert types[:4] == [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL]
    assert (tokens[380], types[380]) == ("<think>", gguf.TokenType.USER_DEFINED)
    assert (tokens[383], types[383]) == ("[PAD383]", gguf.TokenType.UNUSED)


def test_our_own_converter_makes_the_merged_folder_of_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama", tie_word_embeddings=True)
    save_tokenizer(base, "smollm")
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    export.write_gguf(checkpoint, "tiny", base, tmp_path / "m.gguf", None)
    convert.convert(tmp_path / "m.gguf", tmp_path / "back")
    export.write_merged(checkpoint, "tiny", base, tmp_path / "merged", None)
    expected = logits(load_whole(tmp_path / "merged"))
    assert relative_difference(expected, logits(load_whole(tmp_path / "back"))) < 1e-6
    text = "It's <|im_end|> in 2024"
    tokens = [AutoTokenizer.from_pretrained(base)(text).input_ids]
    tokens.append(AutoTokenizer.from_pretrained(tmp_path / "back")(text).input_ids)
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "gpt_neox"])
def test_other_architectures_are_refused_by_name(
    models: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    named = json.loads((models(kind) / "config.json").read_text())["architectures"][0]
    with pytest.raises(OpError, match=f"{named}, only of LlamaForCausalLM and Qwen2ForCausalLM"):
        gguf_file.check(models(kind), "float32")


_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("architecture", "config", "sentence"),
    [
        ("llama", {"rope_parameters": _YARN}, "rotary embeddings of type yarn"),
        ("qwen2", {"rope_parameters": _LLAMA3_ROPE}, "rotary embeddings of type llama3"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8}, "sliding-window"),
        ("llama", {"attention_bias": True}, "biases in a llama"),
        ("llama", {"mlp_bias": True}, "biases in a llama"),
        ("llama", {"hidden_act": "gelu"}, "the activation gelu"),
        ("llama", {"vocab_size": 300}, "embedding only 300 rows"),
    ],
)
def test_what_the_format_does_not_say_is_refused(
    tmp_path: Path, architecture: str, config: dict[str, Any], sentence: str
) -> None:
    base = make_base(tmp_path / "base", architecture, **config)
    save_tokenizer(base)
    with pytest.raises(OpError, match=sentence):
        gguf_file.check(base, "float32")


def test_rows_that_q8_0_cannot_pack_are_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama", intermediate_size=72)
    save_tokenizer(base)
    checkpoint = train_and_save(base, tmp_path / "checkpoint")
    with pytest.raises(OpError, match=r"down_proj\.weight has rows of 72 numbers"):
        export.write_gguf(checkpoint, "tiny", base, tmp_path / "m.gguf", "q8_0")
    with pytest.raises(OpError, match="no dtype 'q4_0'; GGUF is written in float32"):
        export.write_gguf(checkpoint, "tiny", base, tmp_path / "m.gguf", "q4_0")


def _prefix_space(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def _lower_case(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


def _wrapped(backend: Tokenizer) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_prefix_space, r"split by .*add_prefix_space.*split as in llama-bpe, qwen2, smollm"),
        (_lower_case, "normalized by Lowercase"),
        (_wrapped, "puts tokens around a text"),
    ],
)
def test_other_tokenizers_are_refused(
    tmp_path: Path, change: Callable[[Tokenizer], None], sentence: str
) -> None:
    base = make_base(tmp_path / "base", "llama")
    save_tokenizer(base)
    backend = Tokenizer.from_file(str(base / "tokenizer.json"))
    change(backend)
    backend.save(str(base / "tokenizer.json"))
    with pytest.raises(OpError, match=sentence):
        gguf_file.check(base, "float32")


def test_a_base_without_tokenizer_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    with pytest.raises(OpError, match="needs the base model's tokenizer"):
        gguf_file.check(base, "float32")
