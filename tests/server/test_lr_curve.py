"""What a sweep makes of the losses that it meets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_tinker.server.lr_curve import Curve
from jupyter_tinker.wire.lr_find import SweepSettings

WIDE = SweepSettings()


def swept(
    loss: Callable[[float], float | None],
    levels: Sequence[float] = (2.0,),
    settings: SweepSettings = WIDE,
) -> Curve:
    """A sweep in which a batch's loss is its level, and what `loss` makes of the learning rate."""
    curve = Curve(settings, levels)
    while not curve.over:
        change = loss(curve.learning_rate)
        curve.add(None if change is None else levels[curve.batch] + change)
    return curve


def valley(rate: float) -> float:
    """Falls by one around 1e-3, and rises steeply beyond 0.1."""
    fall = 1 / (1 + math.exp(-4 * (math.log10(rate) + 3)))
    return -fall + max(0.0, math.log10(rate) + 1) * 40


@pytest.mark.parametrize("steps", [10, 60, 200])
def test_learning_rates_rise_exponentially_from_end_to_end(steps: int) -> None:
    settings = SweepSettings(min=1e-5, max=0.1, steps=steps)
    rates = [point.learning_rate for point in swept(lambda _: 0.0, settings=settings).points]
    assert len(rates) == steps
    assert (rates[0], rates[-1]) == (pytest.approx(1e-5), pytest.approx(0.1))
    factors = [b / a for a, b in itertools.pairwise(rates)]
    assert factors == pytest.approx([10 ** (4 / (steps - 1))] * (steps - 1))


@pytest.mark.parametrize("steps", [30, 60, 200])
@pytest.mark.parametrize("levels", [(2.0,), (0.4, 9.0, 2.0), (-3.0, 0.0)])
def test_the_suggestion_is_where_the_loss_falls_fastest(
    steps: int, levels: Sequence[float]
) -> None:
    curve = swept(valley, levels, SweepSettings(steps=steps))
    found = curve.suggestion()
    assert found is not None
    # Smoothing makes it late by two tenths of a decade.
    assert math.log10(found.steepest) == pytest.approx(-2.8, abs=0.3)
    assert 1e-2 < found.lowest < 0.3
    assert found.learning_rate == min(found.steepest, found.lowest / 10)


def test_a_fall_just_before_divergence_suggests_a_tenth_of_the_lowest() -> None:
    curve = swept(lambda rate: -3 * max(0.0, math.log10(rate) + 1) if rate < 0.5 else 20.0)
    found = curve.suggestion()
    assert found is not None
    assert found.steepest > found.lowest / 10 == found.learning_rate


def test_a_sweep_ends_where_it_diverges() -> None:
    curve = swept(valley)
    assert curve.diverged
    assert len(curve.points) < WIDE.steps
    smoothed = [point.smoothed for point in curve.points if point.smoothed is not None]
    assert smoothed[-1] > WIDE.stop_at * min(smoothed) >= max(smoothed[:-1])


def test_a_loss_that_is_not_finite_ends_it_and_is_no_point_of_the_curve() -> None:
    curve = swept(lambda rate: valley(rate) if rate < 0.01 else None)
    last = curve.points[-1]
    assert curve.diverged
    assert (last.loss, last.adjusted, last.smoothed) == (None, None, None)
    assert curve.points[-2].learning_rate < 0.01
    assert curve.suggestion() is not None
    assert swept(lambda _: None).suggestion() is None


def test_a_sweep_that_does_not_diverge_goes_to_its_end() -> None:
    curve = swept(lambda rate: -math.log10(rate / 1e-6))
    assert not curve.diverged
    assert len(curve.points) == WIDE.steps
    found = curve.suggestion()
    assert found is not None
    assert found.lowest == curve.points[-1].learning_rate


@pytest.mark.parametrize("level", [0.0, -0.5, 1e-4])
def test_losses_around_zero_do_not_diverge_by_their_noise(level: float) -> None:
    noise = iter([0.02, -0.02] * 100)
    assert not swept(lambda _: next(noise), (level,)).diverged
    assert swept(lambda rate: 0.0 if rate < 0.1 else 5.0, (level,)).diverged


@pytest.mark.parametrize("change", [lambda _: 0.0, lambda rate: rate, lambda rate: -0.01 * rate])
def test_where_nothing_falls_nothing_is_suggested(change: Callable[[float], float]) -> None:
    assert swept(change).suggestion() is None


def test_hard_and_easy_batches_make_one_smooth_curve() -> None:
    curve = swept(lambda _: -0.25, (1.0, 5.0, 9.0))
    assert [point.batch for point in curve.points[:4]] == [0, 1, 2, 0]
    assert [point.loss for point in curve.points[:3]] == [0.75, 4.75, 8.75]
    assert {point.adjusted for point in curve.points} == {4.75}
    assert [point.smoothed for point in curve.points] == pytest.approx([4.75] * WIDE.steps)


_LOSSES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)


@given(_LOSSES, st.lists(st.floats(-100, 100), min_size=1, max_size=5))
def test_smoothed_losses_lie_between_those_that_they_are_made_of(
    losses: list[float], levels: list[float]
) -> None:
    curve = Curve(SweepSettings(steps=30), levels)
    for loss in losses:
        curve.add(loss)
        made = [point.adjusted for point in curve.points if point.adjusted is not None]
        last = curve.points[-1].smoothed
        assert last is not None
        assert min(made) - 1e-6 <= last <= max(made) + 1e-6
