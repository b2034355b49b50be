"""What a person may steer of a run, and what its optimizer is given then."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_tinker.wire.controls import Change, Controls, Ramp, difference, parse_change
from jupyter_tinker.wire.ops import AdamParams
from jupyter_tinker.wire.tinker import BadRequest

_RATES = st.floats(1e-12, 1e3)
_STEPS = st.integers(0, 10**6)
_RAMPS = st.integers(0, 50)
_ASKED = st.builds(
    AdamParams,
    learning_rate=st.one_of(st.just(0.0), _RATES),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.99),
    eps=st.floats(1e-12, 1),
    weight_decay=st.floats(0, 1),
    grad_clip_norm=st.floats(0, 10),
)
_SETTINGS = st.one_of(
    st.builds(lambda x: {"learning_rate_scale": x}, st.floats(1e-6, 1e6)),
    st.builds(lambda x: {"learning_rate": x}, st.one_of(st.none(), st.just(0.0), _RATES)),
)


def change(controls: Controls, *, step: int = 0, **fields: Any) -> Controls:
    wish = parse_change(fields)
    return controls.changed(wish, by="ada", now=5.0, step=step)


def rate(controls: Controls, asked: float, step: int) -> float:
    """The learning rate of step number `step`."""
    return controls.adam(AdamParams(learning_rate=asked), step=step - 1).learning_rate


steered = st.builds(
    lambda first, second, step, ramp: change(
        change(Controls(), **first), step=step, ramp_steps=ramp, **second
    ),
    _SETTINGS,
    _SETTINGS,
    st.integers(0, 100),
    _RAMPS,
)


# The parameters of a step


@given(_ASKED, _STEPS)
def test_without_an_override_a_step_is_what_the_client_asks(asked: AdamParams, step: int) -> None:
    assert Controls().adam(asked, step=step) is asked
    assert change(Controls(), paused=True).adam(asked, step=step) is asked


@given(_ASKED, _STEPS)
def test_half_is_exactly_half(asked: AdamParams, step: int) -> None:
    used = change(Controls(), learning_rate_scale=0.5).adam(asked, step=step)
    assert used == replace(asked, learning_rate=asked.learning_rate / 2)


@given(_ASKED, _STEPS, _RATES, st.floats(0, 5), st.floats(0, 5))
def test_overrides_are_used_whatever_the_client_asks(
    asked: AdamParams, step: int, rate: float, clip: float, decay: float
) -> None:
    controls = change(Controls(), learning_rate=rate, grad_clip_norm=clip, weight_decay=decay)
    assert controls.adam(asked, step=step) == replace(
        asked, learning_rate=rate, grad_clip_norm=clip, weight_decay=decay
    )
    controls = change(controls, learning_rate=None, grad_clip_norm=None, weight_decay=None)
    assert controls.adam(asked, step=step) == asked


@given(steered, _ASKED, _STEPS)
def test_reset_restores_what_the_client_asks_at_once(
    controls: Controls, asked: AdamParams, step: int
) -> None:
    assert change(controls, step=step, reset=True).adam(asked, step=step) is asked


@given(_SETTINGS, _SETTINGS)
def test_a_scale_and_a_value_exclude_each_other(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    controls = change(change(Controls(), **first), **second)
    assert controls.learning_rate is None or controls.learning_rate_scale == 1.0
    assert difference(controls, change(Controls(), **second)) == {}, "the first one is forgotten"


# Ramps


@given(steered, _SETTINGS, st.floats(0, 1e3), st.integers(0, 200))
def test_without_a_ramp_the_next_step_has_what_is_set(
    controls: Controls, setting: dict[str, Any], asked: float, step: int
) -> None:
    new = change(controls, step=step, **setting)
    assert new == change(controls, step=step, ramp_steps=0, **setting)
    assert rate(new, asked, step + 1) == rate(change(Controls(), **setting), asked, 1)


@given(steered, _SETTINGS, st.floats(0, 1e3), st.integers(0, 200), st.integers(1, 50))
def test_a_ramp_goes_from_what_was_to_exactly_what_is_set(
    controls: Controls, setting: dict[str, Any], asked: float, step: int, ramp: int
) -> None:
    new = change(controls, step=step, ramp_steps=ramp, **setting)
    target = rate(change(Controls(), **setting), asked, 1)
    # What the last step before the change would have had, had it asked for this learning rate.
    before = rate(controls, asked, step)
    on_the_way = [rate(new, asked, step + k) for k in range(ramp + 3)]
    assert on_the_way[0] == pytest.approx(before, rel=1e-9, abs=1e-12)
    assert on_the_way[ramp:] == [target] * 3
    rising = target >= on_the_way[0]
    assert on_the_way == sorted(on_the_way, reverse=not rising)


@given(
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
    _RATES,
    st.integers(0, 1000),
    st.integers(1, 1000),
    st.data(),
)
def test_a_ramp_is_linear(
    first: float, second: float, asked: float, step: int, ramp: int, data: st.DataObject
) -> None:
    controls = change(Controls(), learning_rate_scale=first)
    controls = change(controls, step=step, learning_rate_scale=second, ramp_steps=ramp)
    k = data.draw(st.integers(1, ramp))
    begin, end = Fraction(first) * Fraction(asked), Fraction(second) * Fraction(asked)
    exact = begin + (end - begin) * Fraction(k, ramp)
    assert rate(controls, asked, step + k) == pytest.approx(float(exact), rel=1e-12)


def test_a_ramp_that_is_changed_on_its_way_goes_on_from_there() -> None:
    controls = change(Controls(), learning_rate_scale=3.0, ramp_steps=4)
    assert [rate(controls, 1.0, k) for k in (1, 2, 3, 4, 5)] == [1.5, 2.0, 2.5, 3.0, 3.0]
    controls = change(controls, step=2, learning_rate=0.5, ramp_steps=3)
    assert [rate(controls, 1.0, k) for k in (3, 4, 5, 6)] == [1.5, 1.0, 0.5, 0.5]
    # Another control leaves the ramp alone.
    assert change(controls, step=3, grad_clip_norm=1.0).ramp == controls.ramp


def test_a_rewind_to_before_a_ramp_is_its_start() -> None:
    controls = change(Controls(), step=100, learning_rate_scale=0.5, ramp_steps=2)
    assert [rate(controls, 1.0, k) for k in (101, 102)] == [0.75, 0.5]
    assert controls.rewound(101) == controls
    assert controls.rewound(100) == controls
    again = controls.rewound(40)
    assert [rate(again, 1.0, k) for k in (41, 42, 43)] == [0.75, 0.5, 0.5]
    # A step that lies before a ramp has what was set before.
    assert rate(controls, 1.0, 41) == 1.0
    assert Controls().rewound(3) == Controls()


def test_a_ramp_to_where_it_is_already_is_none() -> None:
    controls = change(Controls(), learning_rate_scale=0.5)
    assert change(controls, learning_rate_scale=0.5, ramp_steps=10).ramp is None


# Pausing


def test_pausing_and_resuming() -> None:
    paused = change(Controls(), paused=True)
    assert (paused.paused, paused.paused_because) == (True, "ada paused it")
    assert paused.pause("a guard").paused_because == "ada paused it", "the first reason stays"
    resumed = change(paused, paused=False)
    assert (resumed.paused, resumed.paused_because) == (False, None)


@given(st.integers(1, 30))
def test_a_number_of_steps_and_then_a_pause(steps: int) -> None:
    controls = change(change(Controls(), paused=True), steps=steps)
    for left in range(steps, 0, -1):
        assert (controls.paused, controls.steps_until_pause) == (False, left)
        controls = controls.after_step()
    assert controls.paused
    assert controls.steps_until_pause is None
    words = "the step asked for is done" if steps == 1 else f"the {steps} steps asked for are done"
    assert controls.paused_because == words


def test_pausing_and_resuming_end_a_count_of_steps() -> None:
    counting = change(Controls(), steps=5)
    assert counting.pause("a guard").steps_until_pause is None
    assert change(counting, paused=False).steps_until_pause is None
    assert change(counting, paused=False, steps=2).steps_until_pause == 2
    assert change(counting, steps=7).steps_until_pause == 7
    assert Controls().after_step() == Controls()


# Changes as values


@given(steered)
def test_controls_are_what_their_json_says(controls: Controls) -> None:
    controls = change(
        controls, steps=3, guards={"loss_spike": {"factor": 4}, "plateau": None}, weight_decay=0.1
    )
    assert Controls.from_json(json.loads(json.dumps(controls.to_json()))) == controls
    assert Controls.from_json({**controls.to_json(), "of a later version": 1}) == controls


def test_controls_of_nothing_are_the_default() -> None:
    assert Controls.from_json(None) == Controls() == Controls.from_json({})


def test_a_guard_is_changed_without_the_others() -> None:
    controls = change(Controls(), guards={"non_finite": True, "loss_spike": {}})
    controls = change(controls, guards={"plateau": {"min_delta": 0, "patience": 5}})
    assert controls.to_json()["guards"] == {
        "non_finite": True,
        "loss_spike": {"factor": 6.0, "window": 50},
        "plateau": {"min_delta": 0.0, "patience": 5},
    }
    assert change(controls, guards={"loss_spike": None}).guards.loss_spike is None


def test_who_changed_what_and_when() -> None:
    first = change(Controls(), learning_rate_scale=0.5)
    assert (first.changed_at, first.changed_by) == (5.0, "ada")
    wish: Change = {"learning_rate_scale": 0.5}
    assert first.changed(wish, by="bob", now=9.0, step=3) is first, "nothing has changed"
    second = first.changed({"learning_rate": 1e-4}, by="bob", now=9.0, step=3)
    assert (second.changed_at, second.changed_by) == (9.0, "bob")
    assert difference(first, second) == {
        "before": {"learning_rate_scale": 0.5, "learning_rate": None},
        "after": {"learning_rate_scale": 1.0, "learning_rate": 1e-4},
    }
    assert difference(second, second) == {}
    assert difference(second, change(second, paused=True)) == {}, "that has an event of its own"


def test_a_scale_beyond_all_numbers_is_refused() -> None:
    wish: Change = {"learning_rate_scale": 1e300}
    kept = Controls().changed(wish, by="ada", now=0.0, step=0, asked_learning_rate=1e-3)
    assert kept.learning_rate_scale == 1e300
    with pytest.raises(BadRequest, match="learning_rate_scale"):
        Controls().changed(wish, by="ada", now=0.0, step=0, asked_learning_rate=1e10)


# What cannot be read


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"learning_rate_scale": 0}, "learning_rate_scale must be a finite number above 0.*is 0"),
        ({"learning_rate_scale": -1.5}, "learning_rate_scale must be"),
        ({"learning_rate_scale": None}, "learning_rate_scale must be.*is null"),
        ({"learning_rate_scale": True}, "learning_rate_scale must be.*is true"),
        ({"learning_rate_scale": "0.5"}, "learning_rate_scale must be"),
        ({"learning_rate_scale": math.nan}, "learning_rate_scale must be a finite number"),
        ({"learning_rate": -1e-9}, "learning_rate must be a finite number of at least 0, or null"),
        ({"learning_rate": math.inf}, "learning_rate must be a finite number"),
        ({"learning_rate": True}, "learning_rate must be"),
        ({"grad_clip_norm": -1}, "grad_clip_norm must be"),
        ({"weight_decay": []}, "weight_decay must be"),
        ({"paused": 1}, "paused must be true or false, and is 1"),
        ({"paused": None}, "paused must be true or false"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"steps": 2.0}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"steps": 10**4400}, "steps must be a whole number"),
        ({"reset": False}, "reset must be true"),
        ({"reset": 1}, "reset must be true"),
        ({"learning_rate": 1, "ramp_steps": -1}, "ramp_steps must be a whole number from 0"),
        ({"ramp_steps": 4}, "ramp_steps goes with learning_rate_scale or learning_rate"),
        ({"learning_rate": 1, "learning_rate_scale": 1}, "learning_rate, and not both"),
        ({"reset": True, "weight_decay": 0}, "reset undoes weight_decay"),
        ({"paused": True, "steps": 3}, "steps resumes the run and paused pauses it"),
        ({"guards": None}, "guards must be an object"),
        ({"guards": {"non_finite": None}}, r"guards\.non_finite must be true or false"),
        ({"guards": {"nan": True}}, r"no control 'guards\.nan'; there are .*guards\.non_finite"),
        ({"guards": {"loss_spike": 3}}, r"guards\.loss_spike must be an object of factor and"),
        ({"guards": {"loss_spike": {"factor": 0}}}, r"guards\.loss_spike\.factor must be"),
        ({"guards": {"loss_spike": {"window": 4}}}, r"window must be a whole number from 5"),
        ({"guards": {"plateau": {"min_delta": 1}}}, r"guards\.plateau\.patience is missing"),
        ({"lr": 1e-4}, "no control 'lr'; there are learning_rate_scale, "),
        ({}, "Nothing is to change"),
        ([], "must be a JSON object"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(body: Any, told: str) -> None:
    with pytest.raises(BadRequest, match=told) as refused:
        parse_change(body)
    assert len(str(refused.value)) < 500
    if body != {"steps": 10**4400}:  # which `json` does not write
        with pytest.raises(BadRequest, match=told):
            parse_change(json.dumps(body).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"null", b"3", b"[" * 10_000])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="must be a JSON object"):
        parse_change(body)


_ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.dictionaries(
        st.one_of(
            st.text(max_size=9), st.sampled_from(["factor", "window", "plateau", "patience"])
        ),
        inner,
        max_size=3,
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.one_of(st.sampled_from([*Change.__annotations__]), st.text()), _ANY),
    _STEPS,
    st.floats(0, 1),
)
def test_any_wish_is_granted_or_refused(body: dict[str, Any], step: int, asked: float) -> None:
    try:
        wish = parse_change(json.dumps(body).encode())
    except BadRequest:
        return
    controls = Controls().changed(wish, by="ada", now=1.0, step=step)
    assert Controls.from_json(json.loads(json.dumps(controls.to_json()))) == controls
    assert rate(controls, asked, step + 1) >= 0


def test_a_share_of_a_ramp_is_within_it() -> None:
    ramp = Ramp(1.0, 0.0, start=10, steps=4)
    assert [ramp.share(step) for step in (0, 10, 11, 14, 99)] == [0.0, 0.0, 0.25, 1.0, 1.0]
