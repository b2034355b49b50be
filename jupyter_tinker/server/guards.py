"""Watches a run's steps for what its rules say is reason to pause it.

Knows nothing of queues, the database or the engine. It remembers as many losses as a rule can ask
for, and no more.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import NamedTuple

from ..wire.controls import LossSpike, Plateau, Rules

_LONGEST_WINDOW = 1000  # as `LossSpike` has it
# Losses without which nothing can be called a spike.
_FEWEST = 10
# Of normally distributed numbers, the standard deviation is this often the median deviation.
_NORMAL = 1.4826
# Losses closer together than this, and than this part of their median, are taken as equal.
_FLOOR = 1e-3
_RELATIVE_FLOOR = 0.01


class Alarm(NamedTuple):
    """Why a run should pause."""

    rule: str  # "non_finite", "loss_spike" or "plateau"
    reason: str  # half a sentence


class Guards:
    """What a run's rules need to know of its steps so far."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all steps: the run was rewound, or has other weights."""
        self._step = -1  # of the optimizer: the last one made
        self._losses: deque[float] = deque(maxlen=_LONGEST_WINDOW)
        self._plateau: Plateau | None = None  # the rule that the next two belong to
        self._best = math.inf
        self._since = 0  # steps with a loss since the best

    def look(
        self, rules: Rules, step: int, loss: float | None, skipped: str | None = None
    ) -> Alarm | None:
        """Take in one step; why the run should pause after it, or None.

        `loss` is the mean per unit of weight, None where there is none; `skipped` says why the
        weights were left as they were. A step whose number is not above the last one's begins
        anew: the run was rewound.
        """
        if skipped is not None or (loss is not None and not math.isfinite(loss)):
            reason = skipped or f"the loss of step {step} is not finite"
            return Alarm("non_finite", reason) if rules.non_finite else None
        if step <= self._step:
            self.reset()
        self._step = step
        if loss is None:
            return None
        spike = rules.loss_spike and self._spike(rules.loss_spike, step, loss)
        self._losses.append(loss)
        plateau = self._flat(rules.plateau, step, loss)
        return spike or plateau

    def _spike(self, rule: LossSpike, step: int, loss: float) -> Alarm | None:
        last = list(self._losses)[-rule.window :]
        if len(last) < min(_FEWEST, rule.window):
            return None
        middle, usual = spread(last)
        if not loss > middle + rule.factor * usual:
            return None
        return Alarm(
            "loss_spike",
            f"the loss of step {step}, {loss:.4g}, is a spike: the median of the {len(last)} "
            f"before it is {middle:.4g}, and their spread {usual:.2g}",
        )

    def _flat(self, rule: Plateau | None, step: int, loss: float) -> Alarm | None:
        if rule != self._plateau:
            self._plateau, self._best, self._since = rule, math.inf, 0
        if rule is None:
            return None
        if loss < self._best - rule.min_delta:
            self._best, self._since = loss, 0
            return None
        self._since += 1
        if self._since < rule.patience:
            return None
        self._since = 0  # whoever resumes the run is given as many steps again
        return Alarm(
            "plateau",
            f"until step {step}, no loss of {rule.patience} steps was below the best one, "
            f"{self._best:.4g}, by more than {rule.min_delta:g}",
        )


def spread(losses: list[float]) -> tuple[float, float]:
    """Median of losses, and how far from it they usually are: their scaled median deviation, or
    what it takes for two losses to be told apart."""
    middle = median(losses)
    deviation = _NORMAL * median(abs(loss - middle) for loss in losses)
    return middle, max(deviation, _RELATIVE_FLOOR * abs(middle), _FLOOR)
