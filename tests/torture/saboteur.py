"""Kills the engine or the server at moments drawn from a seed, and keeps the server alive.

At most one kill falls into a turn, a turn is over when all its results are there, and clients
beside this one are waited for: so no request is hit twice, and something new has been learnt
between any two kills.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from .client import Client
from .faults import ENGINE_POINTS, SERVER_POINTS
from .place import Place
from .schedule import Kind, Turn

# A server can be killed, or asked to end, as by who restarts Jupyter in the midst of things.
Victim = Literal["engine", "server", "server, politely"]

# Which turns come past which places; the others come past all training.
_SAVING: tuple[Kind, ...] = ("saved", "saved_for_sampling", "moved", "forked")
_SAMPLING: tuple[Kind, ...] = ("rollouts", "sampled_again", "saved_for_sampling")
_TRAINING: tuple[Kind, ...] = (
    "supervised",
    "accumulated",
    "looked_at",
    "custom",
    "traced",
    "rollouts",
    "sampled_again",
    "saved",
    "moved",
    "controlled",
    "rewound",
)
_WHERE: dict[str, tuple[Kind, ...]] = {
    "decode": _SAMPLING,
    "checkpoints-writing": _SAVING,
    "checkpoints-renamed": _SAVING,
}
# How often a turn comes past a place for certain; it may die at any of these times.
_TIMES = {"forward": 2, "answered": 2, "decode": 2, "commit": 4, "committed": 4}
_IN_FLIGHT = 6  # results, at most, of what a client has sent and not been answered
_GRACE_SECONDS = 0.5  # for what a turn leaves to be written behind it


@dataclass
class Kill:
    """What is to happen in a turn: at a point, or after a share of the time that it takes."""

    victim: Victim
    point: str | None
    nth: int
    share: float


@dataclass
class Saboteur:
    """Kills in chosen turns; `counts` says what was hit, by the victim and the place."""

    place: Place
    seconds: list[float]  # that the turns take undisturbed
    plan: dict[int, Kill]
    beside: Sequence[Client] = ()  # whose requests are hit too
    counts: Counter[str] = field(default_factory=Counter)
    _killed: int | None = None  # the process that was, in this turn
    _closing: threading.Event = field(default_factory=threading.Event)
    _known: list[int] = field(default_factory=list)  # results of each, at the last kill
    _missed: list[Kill] = field(default_factory=list)
    _timer: threading.Timer | None = None
    _keeper: threading.Thread | None = None

    def __enter__(self) -> Saboteur:
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        assert self._keeper is not None
        self._keeper.join(60)

    # Around each turn, on the client's thread

    def before(self, turn: Turn) -> None:
        kill = self.plan.get(turn.number)
        if kill is None:
            return
        self._killed = None
        for client, known in zip(self.beside, self._known, strict=False):
            while not client.finished and len(client.recording.results) < known + _IN_FLIGHT:
                time.sleep(0.01)
        self._catch_up(turn, kill)
        if kill.point is not None:
            self.place.faults.arm(kill.point, kill.nth)
        else:
            delay = kill.share * self.seconds[turn.number]
            self._timer = threading.Timer(delay, self._strike, [kill.victim])
            self._timer.start()

    def after(self, turn: Turn) -> None:
        kill = self.plan.get(turn.number)
        if kill is None:
            return
        if kill.point is not None:
            self._await_point(kill.point)
            if self._killed is None:
                self._missed.append(kill)
        elif self._timer is not None:
            self._timer.join()
        if self._killed is None:  # the turn was too short, or did not come past
            self._strike(kill.victim)
        if self._killed is not None:
            self.place.await_end(self._killed)
        self._known = [len(client.recording.results) for client in self.beside]

    def _catch_up(self, turn: Turn, kill: Kill) -> None:
        """Instead of at a random moment, where an earlier turn did not come past."""
        for missed in self._missed:
            if kill.point is None and _same(kill, missed) and _passes(turn, missed.point):
                kill.point, kill.nth = missed.point, 1
                self._missed.remove(missed)
                return

    def _await_point(self, point: str) -> None:
        deadline = time.monotonic() + _GRACE_SECONDS
        while self.place.faults.armed(point) and time.monotonic() < deadline:
            time.sleep(0.01)
        if not self.place.faults.disarm(point):
            self._killed = self.place.faults.victim(point)
            self.counts[point] += 1

    def _strike(self, victim: Victim) -> None:
        if victim == "engine":
            self._killed = self.place.kill_engine()
        else:
            how = signal.SIGKILL if victim == "server" else signal.SIGTERM
            self._killed = self.place.server.process.pid
            self.place.server.process.send_signal(how)
        if self._killed is not None:  # else between two engines; it is tried again behind the turn
            self.counts[victim] += 1

    def _keep(self) -> None:
        while not self._closing.is_set():
            if self.place.server.process.poll() is not None:
                self.place.start_again()
            time.sleep(0.02)


def plan(
    turns: list[Turn], kills: int, server_kills: int, seed: int, *, first: int = 1
) -> dict[int, Kill]:
    """Which turns are hit, and how. Every place that the turns come past is hit at least once."""
    draw = random.Random(seed)
    chosen = sorted(draw.sample([turn.number for turn in turns[first:]], kills))
    of_server = set(draw.sample(chosen, server_kills))
    missing = [*draw.sample(ENGINE_POINTS, len(ENGINE_POINTS))]
    missing_of_server = [*draw.sample(SERVER_POINTS, len(SERVER_POINTS))]
    made = {}
    for number in chosen:
        server = number in of_server
        points = missing_of_server if server else missing
        point = _place(turns[number], points, SERVER_POINTS if server else ENGINE_POINTS, draw)
        nth = draw.randint(1, _TIMES.get(point or "", 1))
        victim: Victim = "engine"
        if server:
            victim = "server" if point is not None or draw.random() < 0.5 else "server, politely"
        made[number] = Kill(victim, point, nth, draw.random())
    return made


def _place(
    turn: Turn, missing: list[str], all_points: tuple[str, ...], draw: random.Random
) -> str | None:
    """A place that this turn comes past: one not hit yet, or any, or None: a random moment."""
    for point in missing:
        if _passes(turn, point):
            missing.remove(point)
            return point
    possible = [point for point in all_points if _passes(turn, point)]
    return draw.choice(possible) if possible and draw.random() < 0.4 else None


def _same(one: Kill, other: Kill) -> bool:
    return (one.victim == "engine") == (other.victim == "engine")


def _passes(turn: Turn, point: str | None) -> bool:
    return turn.kind in _WHERE.get(point or "", _TRAINING)
