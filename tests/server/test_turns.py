"""How training and sampling share the engine, by a clock that only operations move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from jupyter_tinker.server.turns import FULL_TURN, Turns


class Engine:
    """Does one operation at a time; time passes only while it does one."""

    def __init__(self, share: float = 0.5) -> None:
        self.now = 0.0
        self.turns = Turns(share, lambda: self.now)
        self.used = {"training": 0.0, "sampling": 0.0}
        self.done: list[str] = []
        self.turn_lengths: list[float] = []
        self._one = asyncio.Lock()

    async def work(self, side: str, seconds: float) -> None:
        async with self._one:
            await asyncio.sleep(0)
            self.now += seconds
            self.used[side] += seconds
            self.done.append(side)

    async def train(self, operations: int, seconds: float) -> None:
        for _ in range(operations):
            async with self.turns.training():
                await self.work("training", seconds)

    async def sample(self, turns: int, step: float) -> None:
        """At least one step a turn, and as many as begin within its length."""
        for _ in range(turns):
            async with self.turns.sampling() as length:
                self.turn_lengths.append(length)
                begun = self.now
                await self.work("sampling", step)
                while self.now - begun < length - 1e-9:
                    await self.work("sampling", step)


def story(tell: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(tell(), 30))  # type: ignore[arg-type]


async def _until_one_ends(*work: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(w) for w in work]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
@pytest.mark.parametrize(("operation", "step"), [(0.4, 0.01), (0.01, 0.01), (0.005, 0.03)])
def test_both_get_their_share_of_the_time(share: float, operation: float, step: float) -> None:
    async def tell() -> None:
        engine = Engine(share)
        await _until_one_ends(
            engine.train(2000, operation), engine.train(2000, operation), engine.sample(20000, step)
        )
        total = sum(engine.used.values())
        slack = 2 * (operation + step + FULL_TURN)
        assert abs(engine.used["sampling"] - share * total) < slack

    story(tell)


def test_training_alone_passes_all_at_once() -> None:
    async def tell() -> None:
        engine = Engine()
        together = asyncio.Barrier(5)

        async def operation() -> None:
            async with engine.turns.training():
                await together.wait()

        await asyncio.gather(*(operation() for _ in range(5)))

    story(tell)


def test_sampling_never_meets_training() -> None:
    async def tell() -> None:
        turns, inside = Turns(0.5), {"training": 0, "sampling": 0}

        async def enter(side: str) -> None:
            for _ in range(50):
                async with getattr(turns, side)():
                    inside[side] += 1
                    assert not (inside["training"] and inside["sampling"])
                    assert inside["sampling"] <= 1
                    await asyncio.sleep(0)
                    inside[side] -= 1
                await asyncio.sleep(0)

        await asyncio.gather(*(enter(s) for s in ("training", "training", "sampling")))

    story(tell)


def test_sampling_alone_gets_full_turns() -> None:
    async def tell() -> None:
        engine = Engine()
        await engine.sample(20, 0.01)
        assert engine.turn_lengths == [FULL_TURN] * 20

    story(tell)


def test_a_long_operation_is_made_up_for_by_full_turns_and_equality_by_single_steps() -> None:
    async def tell() -> None:
        engine = Engine()
        await _until_one_ends(engine.train(3, 1.0), engine.train(3, 1.0), engine.sample(999, 0.01))
        assert engine.turn_lengths.count(FULL_TURN) > 10
        engine = Engine()
        await _until_one_ends(
            engine.train(99, 0.01), engine.train(99, 0.01), engine.sample(999, 0.01)
        )
        assert max(engine.turn_lengths[2:]) < FULL_TURN / 2

    story(tell)


@pytest.mark.parametrize("idle", ["training", "sampling"])
def test_who_was_idle_gets_no_credit(idle: str) -> None:
    async def tell() -> None:
        engine = Engine()
        if idle == "sampling":
            await engine.train(100, 1.0)
        else:
            await engine.sample(1000, 0.1)
        before = dict(engine.used)
        await _until_one_ends(engine.train(50, 0.1), engine.sample(50, 0.1))
        gained = {side: engine.used[side] - before[side] for side in before}
        assert gained["training"] == pytest.approx(gained["sampling"], abs=0.5)

    story(tell)


def test_what_a_pause_does_not_wipe_out_is_debt() -> None:
    """A client that waits for each result still leaves sampling its share."""

    async def tell() -> None:
        engine = Engine()

        async def one_by_one() -> None:
            for _ in range(20):
                await engine.train(1, 1.0)
                for _ in range(5):  # the client looks at the result
                    await asyncio.sleep(0)

        await _until_one_ends(one_by_one(), engine.sample(9999, 0.01))
        assert engine.used["sampling"] >= engine.used["training"] - 1.2

    story(tell)


@pytest.mark.parametrize("side", ["training", "sampling"])
def test_who_is_cancelled_leaves_no_gap(side: str) -> None:
    async def tell() -> None:
        turns = Turns(0.5)
        async with turns.sampling():
            waiting = asyncio.create_task(_enter_and_leave(turns, side))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        # The one that is granted in the same moment as it is cancelled gives its turn back.
        async with turns.sampling():
            granted = asyncio.create_task(_enter_and_leave(turns, side))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        granted.cancel()
        await asyncio.wait([granted])
        await _enter_and_leave(turns, "training")
        await _enter_and_leave(turns, "sampling")

    story(tell)


async def _enter_and_leave(turns: Turns, side: str) -> None:
    async with getattr(turns, side)():
        await asyncio.sleep(0)
