"""What a person may steer of a run while it trains, and what a step's parameters are then.

`Controls` is a value: nothing here knows of HTTP, the database or the engine. What may be changed:
`control_changes`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pydantic import TypeAdapter

from .control_changes import Change as Change
from .control_changes import LossSpike as LossSpike
from .control_changes import PastStep as PastStep
from .control_changes import Plateau as Plateau
from .control_changes import RulesChange
from .control_changes import parse_change as parse_change
from .ops import AdamParams
from .tinker import BadRequest

_RULES = TypeAdapter(RulesChange)


@dataclass(frozen=True)
class Rules:
    """What pauses a run by itself."""

    non_finite: bool = False
    loss_spike: LossSpike | None = None
    plateau: Plateau | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "non_finite": self.non_finite,
            "loss_spike": None if self.loss_spike is None else self.loss_spike.model_dump(),
            "plateau": None if self.plateau is None else self.plateau.model_dump(),
        }


@dataclass(frozen=True)
class Ramp:
    """The way from a former learning rate to the one that is set, in equal parts.

    Formerly it was `scale` times what the client asks, plus `offset`.
    """

    scale: float
    offset: float
    start: int  # the step of the change
    steps: int  # at least 1; step `start + steps` has what is set

    def share(self, step: int) -> float:
        """How far on the way step number `step` is, from 0 to 1."""
        return min(max(step - self.start, 0), self.steps) / self.steps


@dataclass(frozen=True)
class Controls:
    """How a run is steered. The default is: not at all."""

    learning_rate_scale: float = 1.0  # of what the client asks
    learning_rate: float | None = None  # instead of what the client asks; the scale is 1 then
    ramp: Ramp | None = None
    grad_clip_norm: float | None = None  # None: as the client asks
    weight_decay: float | None = None  # None: as the client asks
    paused: bool = False
    paused_because: str | None = None
    steps: int | None = None  # how many to make before the next pause, as they were asked for
    steps_until_pause: int | None = None  # how many of them are left
    guards: Rules = field(default_factory=Rules)
    changed_at: float | None = None  # Unix seconds; by a person
    changed_by: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "guards": self.guards.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> Controls:
        """What `to_json` has made; of None, the default."""
        known = {f.name: value[f.name] for f in fields(cls) if value and f.name in value}
        if known.get("ramp"):
            known["ramp"] = Ramp(**known["ramp"])
        if "guards" in known:
            known["guards"] = Rules(**_RULES.validate_python(known["guards"]))
        return cls(**known)

    def adam(self, asked: AdamParams, *, step: int) -> AdamParams:
        """What the optimizer is given for a step that the client wants made with `asked`.

        `step` is the number of steps behind the run: this one will be number `step + 1`.
        """
        used: dict[str, float] = {}
        if self.ramp or self.learning_rate is not None or self.learning_rate_scale != 1.0:
            used["learning_rate"] = self._learning_rate(asked.learning_rate, step + 1)
        if self.grad_clip_norm is not None:
            used["grad_clip_norm"] = self.grad_clip_norm
        if self.weight_decay is not None:
            used["weight_decay"] = self.weight_decay
        return replace(asked, **used) if used else asked

    def _learning_rate(self, asked: float, step: int) -> float:
        scale, offset = self._setting
        end = asked * scale + offset
        share = 1.0 if self.ramp is None else self.ramp.share(step)
        if self.ramp is None or share == 1.0:
            return end
        begin = asked * self.ramp.scale + self.ramp.offset
        return begin + (end - begin) * share

    @property
    def _setting(self) -> tuple[float, float]:
        """The learning rate that is set, as a factor on what is asked and what is added."""
        return (
            (self.learning_rate_scale, 0.0)
            if self.learning_rate is None
            else (0.0, self.learning_rate)
        )

    def changed(
        self,
        change: Change,
        *,
        by: str,
        now: float,
        step: int,
        asked_learning_rate: float | None = None,
    ) -> Controls:
        """These controls after a change; themselves, if it changes nothing.

        `step` is the number of steps behind the run. `asked_learning_rate` is the one that the
        client asked for last. Raises `BadRequest` if scaling that one is beyond all numbers.
        """
        new = self
        if "reset" in change:
            new = replace(new, **_AS_ASKED)
        if "learning_rate_scale" in change:
            scale = change["learning_rate_scale"]
            if not math.isfinite(scale * (asked_learning_rate or 0.0)):
                raise BadRequest(
                    f"learning_rate_scale {scale} times the learning rate that the client asks "
                    f"for, {asked_learning_rate}, is beyond all numbers; make it smaller."
                )
            new = replace(new, learning_rate_scale=scale, learning_rate=None)
        if "learning_rate" in change:
            new = replace(new, learning_rate_scale=1.0, learning_rate=change["learning_rate"])
        if "learning_rate_scale" in change or "learning_rate" in change:
            new = replace(new, ramp=self._ramp(new._setting, step, change.get("ramp_steps", 0)))
        if "grad_clip_norm" in change:
            new = replace(new, grad_clip_norm=change["grad_clip_norm"])
        if "weight_decay" in change:
            new = replace(new, weight_decay=change["weight_decay"])
        if "guards" in change:
            new = replace(new, guards=replace(new.guards, **change["guards"]))
        new = new._halted(change, by)
        return self if new == self else replace(new, changed_at=now, changed_by=by)

    def _ramp(self, setting: tuple[float, float], step: int, steps: int) -> Ramp | None:
        """From where these controls are after `step` steps to a setting."""
        scale, offset = self._setting
        if self.ramp is not None:
            share = self.ramp.share(step)
            scale = scale * share + self.ramp.scale * (1.0 - share)
            offset = offset * share + self.ramp.offset * (1.0 - share)
        if not steps or (scale, offset) == setting:
            return None
        return Ramp(scale, offset, step, steps)

    def _halted(self, change: Change, by: str) -> Controls:
        if "steps" in change:
            return replace(self.resume(), steps=change["steps"], steps_until_pause=change["steps"])
        if "paused" not in change:
            return self
        return self.pause(f"{by} paused it") if change["paused"] else self.resume()

    def pause(self, because: str) -> Controls:
        """Paused, for a reason in half a sentence; a run that is paused keeps its own."""
        if self.paused:
            return self
        return replace(
            self, paused=True, paused_because=because, steps=None, steps_until_pause=None
        )

    def resume(self) -> Controls:
        return replace(self, paused=False, paused_because=None, steps=None, steps_until_pause=None)

    def after_step(self) -> Controls:
        """These controls once one more step is made."""
        if self.steps_until_pause is None:
            return self
        if self.steps_until_pause > 1:
            return replace(self, steps_until_pause=self.steps_until_pause - 1)
        return self.pause(
            "the step asked for is done"
            if self.steps == 1
            else f"the {self.steps} steps asked for are done"
        )

    def rewound(self, step: int) -> Controls:
        """These controls once the run was set back to `step`: a ramp that began later begins
        there."""
        if self.ramp is None or self.ramp.start <= step:
            return self
        return replace(self, ramp=replace(self.ramp, start=step))


_AS_ASKED: dict[str, Any] = {
    "learning_rate_scale": 1.0,
    "learning_rate": None,
    "ramp": None,
    "grad_clip_norm": None,
    "weight_decay": None,
}
# What has events of its own, or is said beside the difference.
_NOT_COMPARED = {"paused", "paused_because", "changed_at", "changed_by"}


def difference(before: Controls, after: Controls) -> dict[str, dict[str, Any]]:
    """The data of an event `control_changed`: the fields that are not the same, in JSON.

    Empty if all are; pausing and resuming have events of their own.
    """
    old, new = before.to_json(), after.to_json()
    names = [name for name in old if name not in _NOT_COMPARED and old[name] != new[name]]
    if not names:
        return {}
    return {
        "before": {name: old[name] for name in names},
        "after": {name: new[name] for name in names},
    }
