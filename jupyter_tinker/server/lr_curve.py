"""What a sweep over learning rates has found: its curve, where it ends, and what it suggests.

The range test of Smith, "Cyclical Learning Rates for Training Neural Networks"
(https://arxiv.org/abs/1506.01186, section 3.3), with learning rates that rise exponentially. Knows
nothing of runs or of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..wire.lr_find import SweepSettings

# The smoothed curve lags behind the losses by this part of the sweep, so that however many steps it
# has, the suggestion is too high by the same factor: 1.6 over six decades.
_LAG = 1 / 30
# A loss nearer to zero than this counts as this where it is asked how many times as high another
# is: a policy's loss may begin at zero.
_SMALLEST = 0.1
# How far the loss must fall, as a part of where it began, and at least, for a suggestion.
_DESCENT, _LEAST_DESCENT = 0.01, 0.001


@dataclass(frozen=True)
class Point:
    """One step of a sweep. Losses are per unit of weight, and measured before the step."""

    learning_rate: float  # of the step
    batch: int  # which of the batches, from 0
    loss: float | None  # of that batch; None: not finite
    adjusted: float | None  # see `Curve`
    smoothed: float | None


@dataclass(frozen=True)
class Suggestion:
    """`learning_rate` is `steepest`, or a tenth of `lowest` if that is less."""

    learning_rate: float
    steepest: float  # where the smoothed loss fell fastest
    lowest: float  # where it was lowest


class Curve:
    """The points of a sweep, as they come.

    Batches are not equally hard, and the curve is to show what the learning rate does. So a loss is
    *adjusted*: it has that of its batch at the sweep's start subtracted, and the mean over all
    batches then added. `levels` are these losses at the start, by batch. *Smoothed* is the
    exponential moving average of that, corrected for its beginning at nothing.
    """

    def __init__(self, settings: SweepSettings, levels: Sequence[float]) -> None:
        self.points: list[Point] = []
        self.diverged = False
        self._settings = settings
        self._levels = levels
        self._mean = math.fsum(levels) / len(levels)
        lag = _LAG * settings.steps
        self._keep = lag / (1.0 + lag)
        self._total = self._weight = 0.0
        self._best = math.inf

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        low, high = self._settings.min, self._settings.max
        done = len(self.points) / (self._settings.steps - 1)
        return math.exp(math.log(low) + done * (math.log(high) - math.log(low)))

    @property
    def batch(self) -> int:
        """That the next step is made with."""
        return len(self.points) % len(self._levels)

    @property
    def over(self) -> bool:
        return self.diverged or len(self.points) == self._settings.steps

    def add(self, loss: float | None) -> None:
        """The loss of `batch`, before the step with `learning_rate`; None: it is not finite."""
        adjusted = smoothed = None
        if loss is not None:
            adjusted = loss - self._levels[self.batch] + self._mean
            self._total = self._keep * self._total + adjusted
            self._weight = self._keep * self._weight + 1.0
            smoothed = self._total / self._weight
        self.points.append(Point(self.learning_rate, self.batch, loss, adjusted, smoothed))
        self.diverged = smoothed is None or smoothed > self._bound(smoothed)

    def _bound(self, smoothed: float) -> float:
        """`stop_at` times the lowest so far."""
        self._best = min(self._best, smoothed)
        return self._best + (self._settings.stop_at - 1.0) * max(abs(self._best), _SMALLEST)

    def suggestion(self) -> Suggestion | None:
        """None if the loss did not fall."""
        rates = [p.learning_rate for p in self.points if p.smoothed is not None]
        losses = [p.smoothed for p in self.points if p.smoothed is not None]
        if not losses:
            return None
        low = min(range(len(losses)), key=losses.__getitem__)
        if losses[0] - losses[low] < max(_DESCENT * abs(losses[0]), _LEAST_DESCENT):
            return None
        # Between two losses lies the step with the learning rate of the first.
        fall = min(range(low), key=lambda i: losses[i + 1] - losses[i])
        steepest, lowest = rates[fall], rates[low]
        return Suggestion(min(steepest, lowest / 10), steepest, lowest)
