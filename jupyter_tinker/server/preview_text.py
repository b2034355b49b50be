"""A preview in text and tokens: prompts as requests to sample, and what came back as answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..wire.ops import OpError
from ..wire.previews import Preview
from . import chat, openai
from .sample_jobs import Outcome

_MOST_CHARACTERS = 20_000  # of an answer: a token may stand for many


def encoded(folder: Path, preview: Preview) -> tuple[chat.Text, list[list[int]]]:
    """The prompts' tokens, and the text they are of. Raises `BadRequest`. Blocking."""
    text = chat.load(folder)
    chats = text.chats if preview.chat is None else preview.chat
    if not chats:
        return text, [text.encode(prompt) for prompt in preview.prompts]
    said = [[{"role": "user", "content": prompt}] for prompt in preview.prompts]
    return text, [text.encode_chat(messages) for messages in said]


def how(preview: Preview) -> dict[str, Any]:
    """How answers are sampled."""
    return preview.model_dump(include={"max_tokens", "temperature", "seed"})


def body(preview: Preview, prompt: list[int]) -> bytes:
    """The `SampleRequest` of a prompt."""
    asked = {
        "sampling_session_id": "preview",
        "seq_id": 0,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": prompt}]},
        "sampling_params": how(preview),
    }
    return json.dumps(asked).encode()


def answer(
    prompt: str, text: chat.Text | None = None, outcome: Outcome | None = None
) -> dict[str, Any]:
    """What a prompt was answered with, or why it was not."""
    told: dict[str, Any] = {"prompt": prompt, "text": None, "tokens": 0, "end": None}
    if isinstance(outcome, OpError):
        return {**told, "error": str(outcome)}
    if outcome is not None and text is not None:
        (one,) = openai.sampled(outcome)
        said = text.decode(one.tokens)[:_MOST_CHARACTERS]
        told.update(text=said, tokens=len(one.tokens), end=one.finish_reason)
    return {**told, "error": None}
