"""Text and tokens of a model, by the files of its folder: tokenizer and chat template.

Works without torch and transformers. What is imported and read here is large, and is so only when
somebody first asks for text; call `load` off the event loop.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..wire.tinker import BadRequest

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character are decoded to


class Text:
    """Translates between the text of one model and its tokens; `marks` are those tokens that are
    no text, such as the end of a turn."""

    def __init__(
        self, tokenizer: Tokenizer, template: Template | None, special: dict[str, str]
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._special = special
        known = tokenizer.get_added_tokens_decoder()
        self.marks = frozenset(token for token, added in known.items() if added.special)

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """A prompt's tokens, with those that the tokenizer puts before every text."""
        return list(self._tokenizer.encode(text).ids)

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The tokens of a conversation up to where the assistant speaks. Raises `BadRequest`."""
        if self._template is None:
            raise BadRequest(
                "This model has no chat template; use completions, with a prompt of your own."
            )
        try:
            text = self._template.render(
                messages=messages, add_generation_prompt=True, **self._special
            )
        except Exception as error:  # a template is a program, and not ours
            raise BadRequest(
                f"The model's chat template does not take these messages: {error}"[:500]
            ) from None
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """With `special`, marks such as the end of a turn are shown."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=not special))


class TextStream:
    """Text of tokens that come one after another; a character is given once all its bytes are
    there. With `special`, marks are shown."""

    def __init__(self, text: Text, *, special: bool = False) -> None:
        self._text = text
        self._marked = special
        self._tokens: list[int] = []
        # Tokens are decoded together with a few before them, as some tokenizers need; text up to
        # `_read` and `_ahead` characters more was given.
        self._start = self._read = self._ahead = 0

    def push(self, tokens: Iterable[int], *, last: bool = False) -> str:
        """The text that these tokens complete; all that is left, if they are the last."""
        self._tokens.extend(tokens)
        before = self._decode(self._tokens[self._start : self._read])
        decoded = self._decode(self._tokens[self._start :])
        whole = decoded if last else decoded.rstrip(_UNFINISHED)
        new = whole[len(before) + self._ahead :]
        if whole == decoded:
            self._start, self._read, self._ahead = self._read, len(self._tokens), 0
        else:
            self._ahead += len(new)
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens, special=self._marked)


def pieces(text: Text, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text of all, marks included. Of tokens that share a character,
    the last has it, and the others add nothing."""
    stream, last = TextStream(text, special=True), len(tokens) - 1
    return [stream.push([token], last=place == last) for place, token in enumerate(tokens)]


class StopFilter:
    """Ends a text before the first stop string, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str, *, last: bool = False) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


@lru_cache(maxsize=8)
def load(folder: Path) -> Text:
    """The translator of the model in `folder`. Raises `BadRequest`. Blocking."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise BadRequest(
            "This model has no tokenizer.json, so it takes tokens and no text: send the prompt as "
            "tokens, or use the Tinker API."
        )
    config = _json(folder / "tokenizer_config.json")
    source = _template_source(folder, config)
    template = None if source is None else _compile(source)
    return Text(Tokenizer.from_file(str(file)), template, _special_tokens(folder, config))


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    named = {**_json(folder / "special_tokens_map.json"), **config}
    found: dict[str, str] = {}
    for name in _SPECIAL:
        value = named.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found


def _template_source(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # several with names
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    return source if isinstance(source, str) else None


def _compile(source: str) -> Template:
    """The template in the environment that such templates are written for. Raises `BadRequest`."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant said, for training; here it says nothing."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's convention)

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), True)
            return body

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise BadRequest(f"The model's chat template cannot be read: {error}.") from None


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)
