"""A request that the engine dies of each time, and an engine that dies again while it revives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tinker
from tinker import types

from .client import Client
from .compare import differences, part
from .conftest import Reference, StartPlace
from .place import Place
from .saboteur import Saboteur
from .schedule import Turn

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*DEPRECATED:FutureWarning"),
]

_MARK = [371, 372, 373, 371, 372, 373]  # tokens that nothing else in the schedule has in a row
_TURNS = 24


def _poisoned() -> types.Datum:
    tokens = [10, *_MARK, 11]
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)},
    )


def _arm(place: Place) -> None:
    place.faults.switch_on("poison", np.asarray(_MARK, "<i4").tobytes().hex())


def _take_poison(client: Client, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Send what kills the engine, and the step behind it; both fail, with sentences."""
    training = client.training
    with pytest.raises(tinker.RequestFailedError, match=r"died 2 times.* goes on from before it"):
        training.forward_backward([_poisoned()], "cross_entropy").result()
    meanwhile()
    with pytest.raises(tinker.RequestFailedError, match="was not done because forward_backward"):
        training.optim_step(types.AdamParams(learning_rate=1.0)).result()


def test_a_deadly_request_fails_alone(start: StartPlace, reference: Reference) -> None:
    """Neither its own run nor one beside it feels more of it than the time it took."""
    place = start()
    _arm(place)
    schedule = reference.turns[:_TURNS]

    def poison(turn: Turn) -> None:
        if turn.number in (5, 14):
            _take_poison(deadly)

    deadly, beside = Client(place.server, before=poison), Client(place.server)
    seen = place.in_time(lambda: deadly.go(schedule), lambda: beside.go(schedule))
    wanted = part(reference.recording, _TURNS)
    assert [differences(recording, wanted) for recording in seen] == [[], []]


def test_what_failed_stays_failed_when_the_server_dies(
    start: StartPlace, reference: Reference
) -> None:
    place = start()
    _arm(place)

    def restart() -> None:
        place.kill_server()
        place.start_again()

    def poison(turn: Turn) -> None:
        if turn.number == 3:
            _take_poison(client, meanwhile=restart)

    client = Client(place.server, before=poison)
    (seen,) = place.in_time(lambda: client.go(reference.turns[:8]))
    assert differences(seen, part(reference.recording, 8)) == []


@pytest.mark.parametrize("moment", ["restore_run", "forward_backward"])
def test_an_engine_that_dies_while_it_revives_is_no_fault_of_the_request(
    start: StartPlace, reference: Reference, moment: str
) -> None:
    # Snapshots after loading only, so that there is something to replay.
    place = start({"TinkerExtension": {"snapshot_overhead": 0.001}})

    def kill(turn: Turn) -> None:
        if turn.number == 14:
            place.faults.arm(f"answered-{moment}", times=3)
            place.kill_idle_engine()

    client = Client(place.server, before=kill)
    (seen,) = place.in_time(lambda: client.go(reference.turns[:16]))
    assert not place.faults.armed(f"answered-{moment}")
    assert differences(seen, part(reference.recording, 16)) == []


@pytest.mark.parametrize("point", ["answered-create_run", "commit"])
def test_a_run_is_created_though_engine_or_server_die(
    start: StartPlace, reference: Reference, point: str
) -> None:
    place = start()
    place.faults.arm(point, nth=1 if "answered" in point else 3)
    schedule = reference.turns[:3]
    with Saboteur(place, reference.recording.seconds, {}):  # which starts the server again
        (seen,) = place.in_time(lambda: Client(place.server).go(schedule))
    assert not place.faults.armed(point)
    assert differences(seen, part(reference.recording, 3)) == []
