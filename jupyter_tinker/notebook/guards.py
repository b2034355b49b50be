"""The rules that pause a run by themselves, as a person types and reads them.

Knows nothing of runs, nor of what breaks a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .commands import Misuse, number, whole


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The rules that arguments set, as the HTTP API has them. Raises `Misuse`."""
    match arguments:
        case []:
            return {}
        case ["off"]:
            return {"non_finite": False, "loss_spike": None, "plateau": None}
        case ["non-finite", ("on" | "off") as state]:
            return {"non_finite": state == "on"}
        case ["loss-spike", "off"]:
            return {"loss_spike": None}
        case ["loss-spike", *numbers] if len(numbers) < 3:
            return {"loss_spike": _spike(*numbers)}
        case ["plateau", "off"]:
            return {"plateau": None}
        case ["plateau", delta, steps]:
            least = number(delta, "MIN_DELTA")
            return {"plateau": {"min_delta": least, "patience": whole(steps, "PATIENCE")}}
        case _:
            raise Misuse


def _spike(factor: str | None = None, window: str | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if factor is not None:
        rule["factor"] = number(factor, "FACTOR")
    if window is not None:
        rule["window"] = whole(window, "WINDOW")
    return rule


def words(rules: dict[str, Any]) -> str:
    """Rules, as they are typed."""
    spike, plateau = rules["loss_spike"], rules["plateau"]
    told = ["non-finite"] if rules["non_finite"] else []
    if spike:
        told.append(f"loss-spike {spike['factor']:g} {spike['window']}")
    if plateau:
        told.append(f"plateau {plateau['min_delta']:g} {plateau['patience']}")
    return ", ".join(told) or "none"
