"""The order of a run's requests, whatever order they come in."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from jupyter_tinker.server.futures import Request
from jupyter_tinker.server.runs import RunQueue


class Recorder:
    """Notes what a queue did, and how."""

    def __init__(self, *, first: int = 1, patience: float = 60.0) -> None:
        self.performed: list[int] = []
        self.given_up: list[tuple[int, str]] = []
        self.running = 0
        self.queue = RunQueue(self._perform, self._give_up, first=first, patience=patience)

    async def _perform(self, request: Request) -> None:
        self.running += 1
        assert self.running == 1, "two requests of one run at once"
        await asyncio.sleep(0.001)
        self.running -= 1
        self.performed.append(request.seq_id)

    async def _give_up(self, request: Request, reason: str) -> None:
        self.given_up.append((request.seq_id, reason))

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.queue.put(Request(f"r{number}", "run", number, "optim_step", b""))

    async def settle(self, seconds: float = 0.1) -> None:
        await asyncio.sleep(seconds)


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3, 4])))
def test_any_arrival_runs_in_order(order: tuple[int, ...]) -> None:
    async def story() -> None:
        recorder = Recorder()
        for number in order:
            recorder.put(number)
            await asyncio.sleep(0.0005)
        await recorder.settle()
        assert recorder.performed == [1, 2, 3, 4]
        assert recorder.given_up == []

    asyncio.run(story())


def test_a_number_that_never_comes_fails_what_waits_and_no_more() -> None:
    async def story() -> None:
        recorder = Recorder(patience=0.05)
        recorder.put(1, 3, 4)
        await recorder.settle(0.2)
        assert recorder.performed == [1]
        assert [number for number, _ in recorder.given_up] == [3, 4]
        assert "number 2" in recorder.given_up[0][1]
        recorder.put(5)
        await recorder.settle()
        assert recorder.performed == [1, 5]

    asyncio.run(story())


def test_a_number_that_comes_in_time_stops_the_clock() -> None:
    async def story() -> None:
        recorder = Recorder(patience=0.15)
        recorder.put(2)
        await recorder.settle(0.08)
        recorder.put(1)
        await recorder.settle(0.2)
        assert recorder.performed == [1, 2]
        assert recorder.given_up == []

    asyncio.run(story())


def test_a_number_after_its_turn_was_given_up_is_refused() -> None:
    async def story() -> None:
        recorder = Recorder(patience=0.05)
        recorder.put(2)
        await recorder.settle(0.15)
        recorder.put(1)
        await recorder.settle()
        assert recorder.performed == []
        assert [number for number, _ in recorder.given_up] == [2, 1]
        assert "given up" in recorder.given_up[1][1]

    asyncio.run(story())


def test_closing_stops_what_waits() -> None:
    async def story() -> None:
        recorder = Recorder(patience=0.05)
        recorder.put(2)
        await recorder.settle(0.01)
        await recorder.queue.close()
        await recorder.settle(0.15)
        assert recorder.given_up == []

    asyncio.run(story())
