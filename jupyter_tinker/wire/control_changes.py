"""What may be changed of a run's controls, and how a wish to change them is read.

Strict: a field nobody knows or a value that is of another kind changes nothing.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from .tinker import BadRequest

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
_NotNegative = Annotated[float, Field(ge=0)]
_MOST = 2**31 - 1
_Count = Annotated[int, Field(ge=1, le=_MOST)]


class LossSpike(BaseModel):
    """Pause when a loss is above the median of the last `window` ones by more than `factor` times
    their spread."""

    model_config = _STRICT
    factor: Annotated[float, Field(gt=0)] = 6.0
    window: Annotated[int, Field(ge=5, le=1000)] = 50


class Plateau(BaseModel):
    """Pause when for `patience` steps no loss was below the best one by more than `min_delta`."""

    model_config = _STRICT
    min_delta: _NotNegative
    patience: _Count


@with_config(_STRICT)
class RulesChange(TypedDict, total=False):
    non_finite: bool
    loss_spike: LossSpike | None
    plateau: Plateau | None


@with_config(_STRICT)
class Change(TypedDict, total=False):
    """What to change of a run's controls: the fields that are there, and no others."""

    learning_rate_scale: Annotated[float, Field(gt=0)]
    learning_rate: _NotNegative | None
    ramp_steps: Annotated[int, Field(ge=0, le=_MOST)]
    grad_clip_norm: _NotNegative | None
    weight_decay: _NotNegative | None
    paused: bool
    steps: _Count
    guards: RulesChange
    reset: bool  # true


class PastStep(BaseModel):
    """A step of a run's past; without a branch, of its present one."""

    model_config = _STRICT
    step: Annotated[int, Field(ge=0, le=_MOST)]
    branch: Annotated[int, Field(ge=0, le=_MOST)] | None = None


_CHANGE = TypeAdapter(Change)
# What `reset` sets back.
_UNDONE = {"learning_rate_scale", "learning_rate", "grad_clip_norm", "weight_decay"}
_FIELDS = ", ".join(Change.__annotations__)
_POSITIVE = "a finite number above 0"
_OVERRIDE = "a finite number of at least 0, or null for what the client asks"
_COUNT = f"a whole number from 1 to {_MOST}"
_MAY_BE = {
    "learning_rate_scale": _POSITIVE,
    "learning_rate": _OVERRIDE,
    "ramp_steps": f"a whole number from 0 to {_MOST}",
    "grad_clip_norm": _OVERRIDE,
    "weight_decay": _OVERRIDE,
    "paused": "true or false",
    "steps": _COUNT,
    "guards": "an object of non_finite, loss_spike and plateau",
    "guards.non_finite": "true or false",
    "guards.loss_spike": "an object of factor and window, or null for none",
    "guards.loss_spike.factor": _POSITIVE,
    "guards.loss_spike.window": "a whole number from 5 to 1000",
    "guards.plateau": "an object of min_delta and patience, or null for none",
    "guards.plateau.min_delta": "a finite number of at least 0",
    "guards.plateau.patience": _COUNT,
    "reset": "true",
}


def parse_change(body: bytes | dict[str, Any]) -> Change:
    """Read what to change. Raises `BadRequest` with a sentence that names the field at fault."""
    try:
        if isinstance(body, bytes):
            change = _CHANGE.validate_json(body)
        else:
            change = _CHANGE.validate_python(body)
    except ValidationError as error:
        raise BadRequest(_sentence(error)) from None
    if not change:
        raise BadRequest(f"Nothing is to change; name at least one of {_FIELDS}.")
    _check_together(change)
    return change


def _check_together(change: Change) -> None:
    rates = {"learning_rate_scale", "learning_rate"} & change.keys()
    if len(rates) == 2:
        raise BadRequest("Give learning_rate_scale or learning_rate, and not both.")
    if "ramp_steps" in change and not rates:
        raise BadRequest("ramp_steps goes with learning_rate_scale or learning_rate, and is alone.")
    if not change.get("reset", True):
        raise BadRequest("reset must be true, and is false; without it nothing is reset.")
    undone = sorted(change.keys() & _UNDONE)
    if "reset" in change and undone:
        raise BadRequest(f"reset undoes {undone[0]}, so give one of the two.")
    if change.get("paused") and "steps" in change:
        raise BadRequest("steps resumes the run and paused pauses it; give one of the two.")


def _sentence(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(map(str, fault["loc"]))
    if fault["type"] == "json_invalid":
        return f"The body must be a JSON object. {fault['msg']}."
    if not path:
        return f"The body must be a JSON object of some of {_FIELDS}."
    if path not in _MAY_BE:
        return f"There is no control {path[:100]!r}; there are {', '.join(_MAY_BE)}."
    if fault["type"] == "missing":
        return f"{path} is missing; it must be {_MAY_BE[path]}."
    return f"{path} must be {_MAY_BE[path]}, and is {_shown(fault['input'])}."


def _shown(value: object) -> str:
    try:
        return json.dumps(value, default=repr)[:50]
    except ValueError:  # more digits than Python prints
        return "a number too long to show"
