"""What came of a request of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .backlog import Work
from .history import Kind
from .journal import Result
from .schema import StepRow


@dataclass(frozen=True)
class Change:
    """How a request changed its run's state."""

    kind: Kind
    of_payload: bool = False  # whether it takes the payload to do it once more
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A result, with what it is to leave in the journal."""

    result: Result
    change: Change | None = None
    step: StepRow | None = None
    not_finite: bool = False  # that is why the step was skipped
    records: Sequence[Work] = ()  # done in the transaction that stores it
