"""Training goes on, bit for bit, however often the engine and the server are killed."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import pytest

from .client import Client, Recording
from .compare import History, differences, tensors
from .conftest import Place, Reference, StartPlace
from .faults import ENGINE_POINTS, SERVER_POINTS
from .saboteur import Saboteur, plan

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:.*DEPRECATED:FutureWarning"),
]

KILLS, SERVER_KILLS = 52, 8  # in one round
_PATIENCE = 1800.0  # seconds that a round may take on a slow machine


def _seeds() -> Sequence[int]:
    """One round; in the long form (`make torture`) as many, of other seeds, as make up
    TORTURE_KILLS."""
    asked = int(os.environ.get("TORTURE_KILLS", KILLS))
    seed = int(os.environ.get("TORTURE_SEED", "0"))
    return range(seed, seed + max(1, -(-asked // KILLS)))


def _go(place: Place, saboteur: Saboteur, reference: Reference) -> Recording:
    """The schedule on a thread, so that a client that waits for ever ends the test and no more."""
    done: list[Recording] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            client = Client(place.server, before=saboteur.before, after=saboteur.after)
            done.append(client.go(reference.turns))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    log = "\n".join(saboteur.server.log.splitlines()[-60:])
    assert not thread.is_alive(), f"the client waits for ever:\n{log}"
    if errors:
        raise AssertionError(f"the client saw an error; the server's log ends with:\n{log}") from (
            errors[0]
        )
    return done[0]


def test_the_same_schedule_gives_the_same_numbers(start: StartPlace, reference: Reference) -> None:
    server = start().server
    again = Client(server).go(reference.turns)
    assert differences(again, reference.recording) == []
    path, expected = again.last_checkpoint, reference.recording.last_checkpoint
    assert tensors(server, path) == tensors(reference.server, expected)
    kinds = {what.partition(":")[0] for _, what, _ in again.results}
    assert kinds == {turn.kind for turn in reference.turns}


@pytest.mark.parametrize("seed", _seeds())
def test_kills_leave_no_trace(
    start: StartPlace, reference: Reference, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nTORTURE_SEED={seed}", end=" ", flush=True)
    place = start()
    made = plan(reference.turns, KILLS, SERVER_KILLS, seed)
    with Saboteur(
        place.server, place.restart, place.faults, reference.recording.seconds, made
    ) as saboteur:
        seen = _go(place, saboteur, reference)
    with capsys.disabled():
        print(dict(saboteur.counts), end=" ", flush=True)

    assert saboteur.counts.total() == KILLS
    assert all(saboteur.counts[point] for point in (*ENGINE_POINTS, *SERVER_POINTS))
    assert differences(seen, reference.recording) == []
    wanted = tensors(reference.server, reference.recording.last_checkpoint)
    assert tensors(saboteur.server, seen.last_checkpoint) == wanted
    _compare_histories(saboteur, seen, reference)


def _compare_histories(saboteur: Saboteur, seen: Recording, reference: Reference) -> None:
    ours, theirs = History(saboteur.server), History(reference.server)
    assert ours.problems(seen.runs) == []
    for run, expected in zip(seen.runs, reference.recording.runs, strict=True):
        assert ours.steps(run) == theirs.steps(expected)
        assert ours.operations(run) == theirs.operations(expected)
