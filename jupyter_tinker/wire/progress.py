"""How far long work is: what the engine says of an operation, and what people are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

# The engine's message on its IOPub channel, with the request that it is about as its parent.
MESSAGE = "tinker_progress"

Unit = Literal["steps", "tensors", "bytes"]
_LONGEST = 300  # characters


@dataclass(frozen=True, slots=True)
class Progress:
    """What is being done, in words for people; `done` of `total`, which may not be known."""

    what: str
    done: int = 0
    total: int | None = None
    unit: Unit = "steps"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return in_words(self.to_json())


def read(content: dict[str, Any]) -> Progress | None:
    """The progress of a message; None if it is none: whoever is attached to a kernel may send what
    looks like one."""
    what, done = content.get("what"), content.get("done")
    total, unit = content.get("total"), content.get("unit")
    counts = [done] if total is None else [done, total]
    if not isinstance(what, str) or unit not in get_args(Unit):
        return None
    if any(type(count) is not int or not 0 <= count < 2**53 for count in counts):
        return None
    return Progress(what[:_LONGEST], content["done"], total, content["unit"])


def in_words(told: dict[str, Any]) -> str:
    """What is being done and how far it is: "loading tiny: 12 of 20 tensors"."""
    done, total, unit = told["done"], told["total"], told["unit"]
    if not total:
        return str(told["what"])
    if unit == "bytes":
        scale, unit = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
        return f"{told['what']}: {done / scale:.1f} of {total / scale:.1f} {unit}"
    return f"{told['what']}: {done} of {total} {unit}"
