"""Training goes on, bit for bit, however often the engine and the server are killed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import pytest

from .client import Client, Recording
from .compare import History, differences, tensors
from .conftest import Reference, StartPlace
from .faults import ENGINE_POINTS, SERVER_POINTS
from .place import Place
from .saboteur import Saboteur, plan

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:.*DEPRECATED:FutureWarning"),
]

KILLS, SERVER_KILLS = 50, 12  # in one round


def _seeds() -> Sequence[int]:
    """One round; in the long form (`make torture`) as many, of other seeds, as make up
    TORTURE_KILLS."""
    asked = int(os.environ.get("TORTURE_KILLS", KILLS))
    seed = int(os.environ.get("TORTURE_SEED", "0"))
    return range(seed, seed + max(1, -(-asked // KILLS)))


def test_the_same_schedule_gives_the_same_numbers(start: StartPlace, reference: Reference) -> None:
    place = start()
    (again,) = place.in_time(lambda: Client(place.server).go(reference.turns))
    _compare(place, again, reference)
    kinds = {what.partition(":")[0] for _, what, _ in again.results}
    assert kinds == {turn.kind for turn in reference.turns}


@pytest.mark.parametrize("seed", _seeds())
def test_kills_leave_no_trace(
    start: StartPlace, reference: Reference, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nTORTURE_SEED={seed}", end=" ", flush=True)
    place = start()
    chosen = plan(reference.turns, KILLS, SERVER_KILLS, seed)
    beside = Client(place.server)
    with Saboteur(place, reference.recording.seconds, chosen, [beside]) as saboteur:
        client = Client(place.server, before=saboteur.before, after=saboteur.after)
        work = [partial(each.go, reference.turns) for each in (client, beside)]
        recordings = place.in_time(*work)
    with capsys.disabled():
        print(dict(saboteur.counts), end=" ", flush=True)

    assert saboteur.counts.total() == KILLS
    victims = ("engine", "server", "server, politely")
    assert all(saboteur.counts[hit] for hit in (*ENGINE_POINTS, *SERVER_POINTS, *victims))
    for seen in recordings:
        _compare(place, seen, reference)


def _compare(place: Place, seen: Recording, reference: Reference) -> None:
    assert differences(seen, reference.recording) == []
    wanted = tensors(reference.server, reference.recording.last_checkpoint)
    assert wanted
    assert tensors(place.server, seen.last_checkpoint) == wanted
    ours, theirs = History(place.server), History(reference.server)
    assert ours.problems(seen.runs) == []
    for run, expected in zip(seen.runs, reference.recording.runs, strict=True):
        assert ours.steps(run) == theirs.steps(expected)
        assert ours.operations(run) == theirs.operations(expected)
