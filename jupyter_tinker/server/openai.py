"""The OpenAI-compatible way to sample: its requests, and its answers made of ours.

What would change the answer and is not supported is refused by name. Knows nothing of HTTP.
Source: OpenAI's API reference for completions and chat completions.
"""

from __future__ import annotations

import json
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..wire import tinker_pb2 as pb
from ..wire.tinker import BadRequest
from .chat import StopFilter, Text, TextStream

# What leaves the answer as it is, and may be sent with any value.
_IGNORED = {
    *("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "store"),
    "prompt_cache_retention",
}
# What changes it, unless it has one of these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}

_MOST_PROMPTS = 128

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
Line = Annotated[str, Field(strict=True)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False  # padding, of which we send none


class _Asked(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=(), allow_inf_nan=False)

    model: str
    n: int = Field(default=1, ge=1, le=128)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = None  # not OpenAI's, but many servers know it
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(_Asked):
    prompt: Line | list[Line] | list[Token] | list[list[Token]]
    max_tokens: Count = 16
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def top_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> Sequence[str | list[int]]:
        """Texts, or lists of tokens."""
        given: Any = self.prompt
        single = isinstance(given, str) or not given or isinstance(given[0], int)
        return [given] if single else given


class TextPart(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "user", "assistant"]
    content: Line | list[TextPart]

    def plain(self) -> dict[str, str]:
        """As chat templates take it. Raises `BadRequest`."""
        for name, value in (self.model_extra or {}).items():
            if value not in (None, [], {}):
                raise Unsupported(f"messages.{name}")
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        return {"role": self.role, "content": "".join(part.text for part in self.content)}


class ChatRequest(_Asked):
    messages: list[Message] = Field(min_length=1)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


Asked = CompletionRequest | ChatRequest


class Unsupported(BadRequest):
    """A parameter that would change the answer and that this server does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is not supported by this server; leave it out.")
        self.param = name


def check(asked: Asked) -> None:
    """Raises `Unsupported` for the first parameter that would be ignored."""
    for name, value in (asked.model_extra or {}).items():
        if name not in _IGNORED and value is not None and value not in _NEUTRAL.get(name, ()):
            raise Unsupported(name)
    if isinstance(asked, CompletionRequest) and len(asked.prompts()) > _MOST_PROMPTS:
        raise BadRequest(f"prompt may hold {_MOST_PROMPTS} prompts; send them in several requests.")
    if asked.stream and wanted_logprobs(asked) is not None:
        raise Unsupported("logprobs together with stream")


def wanted_logprobs(asked: Asked) -> int | None:
    """How many of the likeliest tokens are wanted beside each token; None if no logprobs are."""
    if isinstance(asked, CompletionRequest):
        return asked.logprobs
    return (asked.top_logprobs or 0) if asked.logprobs else None


def sample_body(asked: Asked, tokens: Sequence[int]) -> bytes:
    """The `SampleRequest` that samples what was asked for."""
    params = {
        "max_tokens": asked.limit,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": -1 if asked.top_k in (None, 0) else asked.top_k,
        "seed": asked.seed,
        "stop": asked.stops or None,
    }
    body = {
        "sampling_session_id": "openai",
        "seq_id": 0,
        "num_samples": asked.n,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]},
        "sampling_params": {name: value for name, value in params.items() if value is not None},
        "topk_sample_logprobs": wanted_logprobs(asked) or 0,
    }
    return json.dumps(body).encode()


@dataclass(frozen=True)
class Answer:
    """The head that all parts of one answer share."""

    id: str
    created: int
    model: str
    chat: bool

    @classmethod
    def to(cls, asked: Asked) -> Answer:
        chat = isinstance(asked, ChatRequest)
        name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        return cls(name, int(time.time()), asked.model, chat)

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage}

    def part(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A part of a streamed answer."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, **more}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def delta(self, index: int, text: str, finish: str | None = None) -> dict[str, Any]:
        """A choice of a part: further text, or the end."""
        said = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}

    def opening(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


@dataclass(frozen=True)
class Sampled:
    """One sequence of a `SampleResponse`."""

    tokens: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]
    finish_reason: str


def sampled(body: bytes) -> list[Sampled]:
    """The sequences of a protobuf `SampleResponse`."""
    found = []
    for sequence in pb.SampleResponse.FromString(body).sequences:
        stopped = sequence.stop_reason == pb.STOP_REASON_STOP
        top = sequence.topk_sampled_logprobs
        cells = list(zip(_ints(top.token_ids), _floats(top.logprobs), strict=True))
        rows = [cells[i : i + top.k] for i in range(0, len(cells), top.k)] if top.k else []
        found.append(
            Sampled(
                _ints(sequence.tokens),
                _floats(sequence.logprobs),
                rows,
                "stop" if stopped else "length",
            )
        )
    return found


def _ints(packed: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(packed) // 4}i", packed))


def _floats(packed: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(packed) // 4}f", packed))


def choice(index: int, asked: Asked, text: Text, one: Sampled) -> dict[str, Any]:
    """A sequence as a choice of a whole answer."""
    stream, stops = TextStream(text), StopFilter(asked.stops)
    places: list[int] = []  # where each token's text begins
    given = ""
    for number, token in enumerate(one.tokens):
        places.append(len(given))
        given += stream.push([token], last=number == len(one.tokens) - 1)
    said = stops.push(given, last=True)
    kept = sum(place < len(said) for place in places)
    probabilities = None
    if wanted_logprobs(asked) is not None:
        make = _chat_logprobs if isinstance(asked, ChatRequest) else _completion_logprobs
        probabilities = make(text, one, places[:kept])
    if isinstance(asked, ChatRequest):
        message = {"role": "assistant", "content": said, "refusal": None}
        head: dict[str, Any] = {"index": index, "message": message}
    else:
        head = {"index": index, "text": said}
    return {**head, "logprobs": probabilities, "finish_reason": one.finish_reason}


def _completion_logprobs(text: Text, one: Sampled, places: list[int]) -> dict[str, Any]:
    def shown(token: int) -> str:
        return text.decode([token], special=True)

    count = len(places)
    return {
        "tokens": [shown(token) for token in one.tokens[:count]],
        "token_logprobs": one.logprobs[:count],
        "top_logprobs": [{shown(t): p for t, p in row} for row in one.top[:count]] or None,
        "text_offset": places,
    }


def _chat_logprobs(text: Text, one: Sampled, places: list[int]) -> dict[str, Any]:
    def entry(token: int, logprob: float) -> dict[str, Any]:
        shown = text.decode([token], special=True)
        # Half a character has no text, and its bytes are not known here.
        known = None if "\N{REPLACEMENT CHARACTER}" in shown else list(shown.encode())
        return {"token": shown, "logprob": logprob, "bytes": known}

    content = []
    for number in range(len(places)):
        row = one.top[number] if one.top else []
        likeliest = [entry(token, logprob) for token, logprob in row]
        own = entry(one.tokens[number], one.logprobs[number])
        content.append({**own, "top_logprobs": likeliest})
    return {"content": content, "refusal": None}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
