"""A server that is asked to end while its clients work, as by who restarts Jupyter."""

from __future__ import annotations

import signal
import threading

import pytest

from .client import Client
from .compare import History, differences, part
from .conftest import Reference, StartPlace
from .saboteur import Saboteur
from .schedule import Turn

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*DEPRECATED:FutureWarning"),
]

_TURNS = 12
_HIT = {"forward_backward": 4, "optim_step": 6, "save_checkpoint": 9, "decode": 7}


@pytest.mark.parametrize("operation", _HIT)
def test_what_the_engine_was_at_is_done_once(
    start: StartPlace, reference: Reference, operation: str
) -> None:
    """Also if the engine finishes it while the server says farewell."""
    # Hardly a snapshot, so that the one of the farewell matters.
    place = start({"TinkerExtension": {"snapshot_overhead": 0.001}})
    slow = f"slow-{operation}"

    def end() -> None:
        place.server.process.send_signal(signal.SIGTERM)
        place.server.process.wait()
        place.faults.switch_off(slow)

    def before(turn: Turn) -> None:
        if turn.number == _HIT[operation]:
            place.faults.switch_on(slow, "1.5")
            threading.Timer(0.7, end).start()

    client = Client(place.server, before=before)
    with Saboteur(place, reference.recording.seconds, {}):  # which starts the server again
        (seen,) = place.in_time(lambda: client.go(reference.turns[:_TURNS]))
    assert differences(seen, part(reference.recording, _TURNS)) == []
    assert History(place.server).problems(seen.runs) == []
