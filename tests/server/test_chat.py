"""From text to tokens and back, without torch."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from jupyter_tinker.server import chat
from jupyter_tinker.server.chat import StopFilter, TextStream
from jupyter_tinker.wire.tinker import BadRequest

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Größe? 👩‍👩‍👧 \n\n漢字"},
]


@pytest.fixture
def text(tiny_model_dir: Path) -> chat.Text:
    return chat.load(tiny_model_dir)


def test_chats_are_encoded_as_transformers_does(tiny_model_dir: Path, text: chat.Text) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    wanted = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert text.encode_chat(MESSAGES) == list(wanted)
    assert text.encode("Some text.") == tokenizer("Some text.")["input_ids"]


@pytest.mark.parametrize("seed", range(20))
def test_streamed_text_is_the_whole_text_and_cuts_no_character(text: chat.Text, seed: int) -> None:
    draw = random.Random(seed)
    written = "".join(draw.choices("aß 👩‍👧漢\n.", k=80))
    tokens = text.encode(written)
    stream, parts = TextStream(text), []
    while tokens:
        count = draw.randint(1, 3)
        tokens, new = tokens[count:], tokens[:count]
        parts.append(stream.push(new, last=not tokens))
    assert "".join(parts) == written
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


@pytest.mark.parametrize("seed", range(20))
def test_any_tokens_stream_to_what_they_decode_to(text: chat.Text, seed: int) -> None:
    draw = random.Random(seed)
    tokens = [draw.randrange(384) for _ in range(60)]
    stream = TextStream(text)
    parts = [stream.push([token]) for token in tokens]
    assert "".join([*parts, stream.push([], last=True)]) == text.decode(tokens)


def test_a_stop_string_ends_the_text_and_its_beginning_waits() -> None:
    stops = StopFilter(["\n\nUser:", "END"])
    assert stops.push("Hello\n") == "Hello"
    assert stops.push("\nUs") == ""
    assert stops.push("ed to. EN") == "\n\nUsed to. "
    assert stops.push("D and more") == ""
    assert stops.stopped
    assert stops.push("more", last=True) == ""


def test_what_only_looked_like_a_stop_is_given_at_the_end() -> None:
    stops = StopFilter(["END"])
    assert stops.push("the E") == "the "
    assert stops.push("N", last=True) == "EN"


def _model(tmp_path: Path, tiny: Path, template: object) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text((tiny / "tokenizer.json").read_text())
    config = {"chat_template": template, "bos_token": {"content": "<|im_start|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_templates_may_use_what_they_use_elsewhere(tmp_path: Path, tiny_model_dir: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y')[:0] }}"
    )
    named = [{"name": "other", "template": "no"}, {"name": "default", "template": template}]
    text = chat.load(_model(tmp_path, tiny_model_dir, named))
    shown = text.decode(text.encode_chat(MESSAGES), special=True)
    assert shown == '<|im_start|>"Größe? 👩‍👩‍👧 \\n\\n漢字"'


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{% if %}",
        None,
    ],
)
def test_templates_that_fail_or_break_out_are_refused(
    tmp_path: Path, tiny_model_dir: Path, template: str | None
) -> None:
    with pytest.raises(BadRequest):
        chat.load(_model(tmp_path, tiny_model_dir, template)).encode_chat(MESSAGES)


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"tokenizer\.json"):
        chat.load(tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_the_text_with_its_marks(text: chat.Text, seed: int) -> None:
    draw = random.Random(seed)
    tokens: list[int] = []
    for _ in range(10):
        tokens += text.encode("".join(draw.choices("aß 👩‍👧漢\n.", k=8)))
        tokens.append(draw.choice([1, 2]))
    parts = chat.pieces(text, tokens)
    assert len(parts) == len(tokens)
    assert "".join(parts) == text.decode(tokens, special=True)
    names = {1: "<|im_start|>", 2: "<|im_end|>"}
    for part, token in zip(parts, tokens, strict=True):
        assert part == names.get(token, part)
        assert "\N{REPLACEMENT CHARACTER}" not in part
    assert text.marks == {0, 1, 2}


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_tokens_are_the_text(text: chat.Text, seed: int) -> None:
    draw = random.Random(seed)
    tokens = [draw.randrange(384) for _ in range(60)]
    assert "".join(chat.pieces(text, tokens)) == text.decode(tokens, special=True)
    assert chat.pieces(text, []) == []
