"""A tokenizer as a GGUF file holds it: tokens, merges, special ids, and how text is split.

GGUF has no place for the rules by which a tokenizer splits text before it merges bytes. It names
one of the sets of rules that llama.cpp has built in, so a tokenizer can be written only if its
rules are one of those sets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..wire.ops import OpError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = ("ByteLevel", False)  # without the words of GPT-2
_GPT2_WORDS = ("ByteLevel", True)

# llama.cpp's names of the rules, by the steps that a tokenizer.json spells out for them.
_RULES: dict[tuple[tuple[Any, ...], ...], str] = {
    (("Split", rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"), _BYTES): "llama-bpe",
    (("Split", rf"{_WORDS}|\p{{N}}|{_REST}"), _BYTES): "qwen2",
    (("Digits", True), _GPT2_WORDS): "smollm",
    (_GPT2_WORDS,): "gpt-2",
}
# llama.cpp does not normalize, so with it a decomposed accent is other tokens than in training. Of
# Qwen2's tokenizer, whose only rule of this kind that is, its users know.
_NORMALIZED = ("qwen2",)

_SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer."""

    rules: str  # llama.cpp's name of how text is split
    tokens: list[str]  # one for each row of the embedding
    types: list[TokenType]
    merges: list[str]
    special: dict[str, int]  # ids, by "bos", "eos", "unk", "pad"
    add_bos: bool
    add_eos: bool
    chat_template: str | list[dict[str, str]] | None

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")  # GGUF's word for BPE over bytes
        writer.add_tokenizer_pre(self.rules)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read(folder: Path, size: int) -> Vocabulary:
    """The tokenizer in `folder`, for an embedding of `size` rows. Raises `OpError`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        description = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # what wrong files make transformers raise is open-ended
        raise OpError(
            f"GGUF needs the base model's tokenizer, and {folder} has none that can be read "
            f"({' '.join(str(error).split())[:200]}); put its files there, or export with --merged"
        ) from error
    rules = _rules(description)
    tokens, types = _tokens(tokenizer, description, size)
    add_bos, add_eos = _added(tokenizer)
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}
    merges = description["model"]["merges"]
    return Vocabulary(
        rules=rules,
        tokens=tokens,
        types=types,
        merges=[pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        special={name: number for name, number in ids.items() if number is not None},
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(tokenizer),
    )


def _rules(description: dict[str, Any]) -> str:
    model = description["model"]
    odd = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    steps = tuple(_steps(description["pre_tokenizer"]))
    rules = _RULES.get(steps)
    normalizer = (description["normalizer"] or {}).get("type")
    normalized = normalizer is None or (normalizer == "NFC" and rules in _NORMALIZED)
    if model["type"] != "BPE" or any(model.get(key) for key in odd) or not (rules and normalized):
        raise OpError(
            f"GGUF cannot hold the base model's tokenizer ({model['type']}, "
            f"split by {steps or 'nothing'}, normalized by {normalizer or 'nothing'}); those that "
            f"can be written are byte-level BPE split as in {', '.join(_RULES.values())}. Export "
            f"with --merged"
        )
    return rules


def _steps(part: dict[str, Any] | None) -> list[tuple[Any, ...]]:
    """The steps of a pre-tokenizer, each by what tells it from others of its type."""
    match part or {"type": "Sequence", "pretokenizers": []}:
        case {"type": "Sequence", "pretokenizers": steps}:
            return [found for step in steps for found in _steps(step)]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
            return [("ByteLevel", words)]
        case {"type": "Digits", "individual_digits": individual}:
            return [("Digits", individual)]
        case {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}:
            return [("Split", rule)]
        case other:
            return [(json.dumps(other)[:200],)]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, description: dict[str, Any], size: int
) -> tuple[list[str], list[TokenType]]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    largest = max(vocabulary.values())
    if largest >= size:
        raise OpError(
            f"the base model's tokenizer has tokens up to number {largest} and its embedding only "
            f"{size} rows; export with --merged"
        )
    # Embeddings are often padded to a round size; those rows have no token.
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    for token, number in vocabulary.items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for added in description["added_tokens"]:
        special = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        types[added["id"]] = special
    return tokens, types


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts its own tokens before and behind a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    for before, behind in ((False, False), (True, False), (False, True), (True, True)):
        if full == bos * before + plain + eos * behind:
            return before, behind
    raise OpError(
        "GGUF cannot hold the base model's tokenizer: it puts tokens around a text that are not "
        "its beginning and end of text; export with --merged"
    )


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | list[dict[str, str]] | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template
