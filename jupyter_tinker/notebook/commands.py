"""What a command is: its arguments, its help and its answer.

Knows no command, and neither program that has them, the command line and `%tinker`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

RUN = """RUN is a run's id, a beginning of it that no other id has, `latest`, or `latest~N` for the
    one that N newer ones came after."""


class Misuse(ValueError):
    """Arguments that a command does not take. The message says which is wrong; it is empty where
    the command's usage says more."""


class Answer(NamedTuple):
    """What a command did, in a sentence; and its result, where the sentence is one."""

    text: str
    value: Any = None


@dataclass(frozen=True)
class Command:
    """`perform` takes a way to find runs, the arguments, and the options, whole numbers, by name.

    It raises `Misuse` before it asks the server for anything, and `RequestFailed`.
    """

    name: str
    usage: str
    summary: str
    perform: Callable[..., Answer]
    details: str = ""
    examples: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)  # name -> help
    # What may stand behind the run, for completion: words by position.
    words: Sequence[Sequence[str]] = ()

    @property
    def help(self) -> str:
        """All that there is to say, in paragraphs."""
        text = "\n\n".join((self.summary, self.details, RUN if "RUN" in self.usage else ""))
        paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        return "\n\n".join(filter(None, paragraphs))


def whole(text: str, what: str) -> int:
    """The number that an argument gives. Raises `Misuse`."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    raise Misuse(f"{what} is a whole number, and not {text[:50]!r}")


def number(text: str, what: str) -> float:
    """`whole`, of any number."""
    try:
        return float(text)
    except ValueError:
        raise Misuse(f"{what} is a number, and not {text[:50]!r}") from None
