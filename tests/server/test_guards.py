"""What a run's rules say of its steps."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_tinker.server.guards import Alarm, Guards, spread
from jupyter_tinker.wire.controls import LossSpike, Plateau, Rules

_LOSSES = st.floats(-100, 100)
SPIKE = Rules(loss_spike=LossSpike(factor=6, window=20))
NOT_FINITE = Rules(non_finite=True)
ALL = Rules(True, LossSpike(), Plateau(min_delta=0, patience=5))


def flat(min_delta: float, patience: int) -> Rules:
    return Rules(plateau=Plateau(min_delta=min_delta, patience=patience))


def alarms(rules: Rules, losses: list[float | None], guards: Guards | None = None) -> list[int]:
    """The steps, counted from 1, whose losses are reason to pause."""
    guards = guards or Guards()
    return [
        step for step, loss in enumerate(losses, 1) if guards.look(rules, step, loss) is not None
    ]


# Not finite


def test_a_skipped_step_is_reason_to_pause_where_the_rule_is_on() -> None:
    why = "datum 3's loss is not finite"
    assert Guards().look(NOT_FINITE, 1, None, why) == Alarm("non_finite", why)
    assert Guards().look(Rules(), 1, None, why) is None
    assert Guards().look(NOT_FINITE, 1, 0.5) is None
    assert Guards().look(NOT_FINITE, 1, None) is None, (
        "a step without a loss is none with a bad one"
    )


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(loss: float) -> None:
    told = Guards().look(NOT_FINITE, 7, loss)
    assert told == Alarm("non_finite", "the loss of step 7 is not finite")
    assert Guards().look(ALL, 7, loss).rule == "non_finite"  # type: ignore[union-attr]


@given(st.lists(_LOSSES, min_size=5, max_size=60), st.data())
def test_skipped_steps_leave_the_other_rules_as_they_were(
    losses: list[float], data: st.DataObject
) -> None:
    plain, disturbed = Guards(), Guards()
    rules = Rules(loss_spike=LossSpike(factor=3, window=7), plateau=ALL.plateau)
    for step, loss in enumerate(losses, 1):
        if data.draw(st.booleans()):
            # Its number is given again to the next step: the optimizer has not counted it.
            assert disturbed.look(rules, step, None, "a gradient is not finite") is None
        assert plain.look(rules, step, loss) == disturbed.look(rules, step, loss)


# Spikes


def test_a_spike_is_told_with_its_numbers() -> None:
    guards = Guards()
    for step in range(1, 21):
        assert guards.look(SPIKE, step, 2.0 + 0.1 * (step % 2)) is None
    told = guards.look(SPIKE, 21, 5.25)
    assert told is not None
    assert told.rule == "loss_spike"
    assert "the loss of step 21, 5.25, is a spike" in told.reason
    assert "the 20 before it is 2.05" in told.reason


@given(st.lists(_LOSSES, min_size=20, max_size=40), st.floats(0.5, 20), st.integers(5, 40), _LOSSES)
def test_a_spike_is_above_the_median_by_a_factor_of_the_spread(
    losses: list[float], factor: float, window: int, loss: float
) -> None:
    guards = Guards()
    for step, earlier in enumerate(losses, 1):
        guards.look(Rules(), step, earlier)
    rules = Rules(loss_spike=LossSpike(factor=factor, window=window))
    last = losses[-window:]
    middle = statistics.median(last)
    deviation = 1.4826 * statistics.median([abs(x - middle) for x in last])
    bound = middle + factor * max(deviation, 0.01 * abs(middle), 1e-3)
    assert (guards.look(rules, len(losses) + 1, loss) is not None) == (loss > bound)


@given(_LOSSES, st.integers(0, 80))
def test_constant_losses_are_no_spike(loss: float, steps: int) -> None:
    assert alarms(SPIKE, [loss] * steps) == []


@given(_LOSSES, st.lists(st.floats(-1, 1), max_size=80))
def test_differences_that_mean_nothing_are_no_spike(loss: float, noise: list[float]) -> None:
    width = max(0.01 * abs(loss), 1e-3)
    assert alarms(SPIKE, [loss + 2.9 * width * x for x in noise]) == []


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=60))
def test_losses_that_fall_are_no_spike(falls: list[float]) -> None:
    losses = [1e6]
    for fall in falls:
        losses.append(losses[-1] - fall)
    assert alarms(SPIKE, list(losses)) == []


def test_a_few_losses_say_nothing_yet() -> None:
    assert alarms(SPIKE, [2.0] * 9 + [50.0]) == []
    assert alarms(SPIKE, [2.0] * 10 + [50.0]) == [11]
    narrow = Rules(loss_spike=LossSpike(factor=6, window=5))
    assert alarms(narrow, [2.0] * 4 + [50.0]) == []
    assert alarms(narrow, [2.0] * 5 + [50.0]) == [6]


def test_losses_below_zero_have_spikes_too() -> None:
    losses: list[float | None] = [-1.0 - 0.01 * (k % 3) for k in range(20)]
    assert alarms(SPIKE, [*losses, -0.4]) == [21]
    assert alarms(SPIKE, [*losses, -9.0]) == [], "better than ever is no spike"


def test_only_the_window_counts() -> None:
    assert alarms(SPIKE, [9.0] * 30 + [1.0] * 20 + [9.0]) == [51]
    wide = Rules(loss_spike=LossSpike(factor=6, window=50))
    assert alarms(wide, [9.0] * 30 + [1.0] * 20 + [9.0]) == []


def test_a_level_that_lasts_becomes_the_usual_one() -> None:
    assert alarms(SPIKE, [1.0] * 20 + [3.0] * 40) == list(range(21, 31))


# Plateaus


def test_a_plateau_is_told_and_counted_anew() -> None:
    guards = Guards()
    losses: list[float | None] = [3.0, 2.0, 1.0, *[1.0] * 7]
    assert alarms(flat(0.0, 3), losses, guards) == [6, 9]
    guards = Guards()
    told = [guards.look(flat(0.0, 3), step, 1.5) for step in range(1, 5)]
    assert told[:3] == [None] * 3
    assert told[3] is not None
    assert told[3].rule == "plateau"
    assert told[3].reason.startswith("until step 4, no loss of 3 steps was below the best one, 1.5")


@given(st.lists(_LOSSES, min_size=1, max_size=80), st.floats(0, 50), st.integers(1, 20))
def test_a_plateau_is_so_many_steps_without_a_better_loss(
    losses: list[float], min_delta: float, patience: int
) -> None:
    first = alarms(flat(min_delta, patience), list(losses))[:1]
    best, since, expected = math.inf, 0, []
    for step, loss in enumerate(losses, 1):
        better = loss < best - min_delta
        best, since = (loss, 0) if better else (best, since + 1)
        if since == patience:
            expected = [step]
            break
    assert first == expected


@given(st.lists(st.floats(0.011, 5), min_size=1, max_size=60), st.integers(1, 3))
def test_losses_that_fall_enough_are_no_plateau(falls: list[float], patience: int) -> None:
    losses = [0.0]
    for fall in falls:
        losses.append(losses[-1] - fall)
    assert alarms(flat(0.01, patience), list(losses)) == []


def test_a_new_rule_counts_from_where_it_was_set() -> None:
    guards = Guards()
    assert alarms(Rules(), [1.0] * 30, guards) == []
    told = [guards.look(flat(0.0, 3), 31 + k, 1.0) for k in range(4)]
    assert [alarm is not None for alarm in told] == [False, False, False, True]


def test_a_rule_that_is_changed_counts_anew() -> None:
    guards = Guards()
    assert alarms(flat(0.0, 5), [1.0] * 4, guards) == []
    told = [guards.look(flat(0.0, 2), 5 + k, 2.0) for k in range(3)]
    assert [alarm is not None for alarm in told] == [False, False, True]


def test_steps_without_a_loss_do_not_count() -> None:
    assert alarms(flat(0.0, 2), [1.0, None, None, None, 1.0, None, 1.0]) == [7]


# Rewinding, and bounds


@given(st.lists(_LOSSES, max_size=40), st.lists(_LOSSES, min_size=1, max_size=40), st.data())
def test_a_rewind_forgets_what_was(
    before: list[float], after: list[float], data: st.DataObject
) -> None:
    fresh, rewound, reset = Guards(), Guards(), Guards()
    back = data.draw(st.integers(0, max(len(before) - 1, 0)))
    for step, loss in enumerate(before, 1):
        rewound.look(ALL, step, loss)
        reset.look(ALL, step, loss)
    reset.reset()
    for step, loss in enumerate(after, back + 1):
        expected = fresh.look(ALL, step, loss)
        assert rewound.look(ALL, step, loss) == expected
        assert reset.look(ALL, step, loss) == expected


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=60))
def test_any_losses_are_looked_at(losses: list[float | None]) -> None:
    told = alarms(ALL, losses)
    assert all(step in told for step, x in enumerate(losses, 1) if x and not math.isfinite(x))


def test_the_memory_is_bounded() -> None:
    guards = Guards()
    rules = Rules(loss_spike=LossSpike(window=1000))
    for step in range(2500):
        guards.look(rules, step, 0.0)
    assert max(len(value) for value in vars(guards).values() if hasattr(value, "__len__")) == 1000


@given(st.lists(_LOSSES, min_size=1, max_size=50))
def test_the_spread_is_never_nothing(losses: list[float]) -> None:
    middle, usual = spread(losses)
    assert min(losses) <= middle <= max(losses)
    assert usual >= 1e-3
