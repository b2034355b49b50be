"""What may be asked of the learning rate finder, read strictly."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

_Rate = Annotated[float, Field(ge=1e-12, le=1e3)]


class SweepSettings(BaseModel):
    """A sweep of `steps` optimizer steps, whose learning rates rise exponentially from `min` to
    `max`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    min: _Rate = 1e-6
    max: _Rate = 1.0
    steps: Annotated[int, Field(ge=10, le=200)] = 60
    # Of how many of the run's newest optimizer steps the data is gone through, again and again.
    batches: Annotated[int, Field(ge=1, le=32)] = 8
    # Times the lowest smoothed loss, from which on the sweep has diverged.
    stop_at: Annotated[float, Field(gt=1, le=1e3)] = 4.0

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.min >= self.max:
            about = f"min must be below max, and is {self.min:g}"
            raise PydanticCustomError("rises", about)
        return self
