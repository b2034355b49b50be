"""What a run is asked while it trains, so that a person can read how its answers change.

A value that belongs to the run; nothing here knows of HTTP, the database or the engine.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .tinker import BadRequest

MOST_PROMPTS = 5
MOST_CHARACTERS = 4000  # of a prompt
MOST_TOKENS = 256  # of an answer
_MOST = 2**31 - 1

Prompt = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]


class Preview(BaseModel):
    """The prompts, how often they are asked, and how their answers are sampled.

    `every`: of so many optimizer steps one; None is on request only. `temperature` 0 takes the
    likeliest token. `chat`: whether a prompt is what a user says, in the model's chat template;
    None is where it has one.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    prompts: Annotated[list[Prompt], Field(max_length=MOST_PROMPTS)] = []
    every: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 64
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    seed: Annotated[int, Field(ge=0, le=_MOST)] = 0
    chat: bool | None = None

    def due(self, step: int) -> bool:
        """Whether the weights after this step are to be asked."""
        return bool(self.prompts) and self.every is not None and step % self.every == 0


_MAY_BE = {
    "prompts": f"a list of at most {MOST_PROMPTS} texts, each of 1 to {MOST_CHARACTERS} characters",
    "every": f"a whole number from 1 to {_MOST}, or null for on request only",
    "max_tokens": f"a whole number from 1 to {MOST_TOKENS}",
    "temperature": "a number from 0 to 10",
    "seed": f"a whole number from 0 to {_MOST}",
    "chat": "true, false, or null for where the model has a chat template",
}


def parse_preview(body: bytes | dict[str, Any]) -> Preview:
    """Read a whole setting; what is left out has its default. Raises `BadRequest` with a sentence
    that names the field at fault."""
    try:
        if isinstance(body, bytes):
            return Preview.model_validate_json(body)
        return Preview.model_validate(body)
    except ValidationError as error:
        raise BadRequest(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    if fault["type"] == "json_invalid":
        return f"The body must be a JSON object. {fault['msg']}."
    if not fault["loc"]:
        return f"The body must be a JSON object of some of {', '.join(_MAY_BE)}."
    name = str(fault["loc"][0])
    if name not in _MAY_BE:
        return f"A preview has no {name[:100]!r}; it has {', '.join(_MAY_BE)}."
    return f"{name} must be {_MAY_BE[name]}."
