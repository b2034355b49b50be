"""The pump: what it hands to the engine, and what becomes of it, whatever happens to the engine."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server.engine_client import EngineDied
from jupyter_tinker.server.pump import Pump
from jupyter_tinker.server.sample_jobs import Job, Outcome
from jupyter_tinker.server.samplers import Target
from jupyter_tinker.server.turns import Turns
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire.ops import OpError
from tests.server.fake_engine import DEADLY, FORBIDDEN, FakeEngine, tokens_of


class Stage:
    """A pump on a fake engine, and what became of its jobs."""

    def __init__(self, *, max_samples: int = 100, max_loaded: int = 10, share: float = 0.5) -> None:
        self.engine = FakeEngine()
        self.turns = Turns(share)
        self.pump = Pump(
            self.engine,
            self.turns,
            max_samples=max_samples,
            max_loaded=max_loaded,
            revive=self._revive,
            log=logging.getLogger("test"),
        )
        self.revivals: list[str] = []
        self.revive: Callable[[Target], None] = lambda target: None  # may raise
        self.may_revive = asyncio.Event()
        self.may_revive.set()
        self.outcomes: dict[str, Outcome] = {}
        self.order: list[str] = []
        self._count = 0

    async def _revive(self, target: Target) -> None:
        assert target.run is not None
        self.revivals.append(target.name)
        await self.may_revive.wait()
        self.revive(target)
        await self.engine.request(sampling.SnapshotSampler(target.name, target.run))

    async def make_copy(self, target: Target) -> None:
        """As a run does."""
        assert target.run is not None
        await self.engine.request(sampling.SnapshotSampler(target.name, target.run))
        self.pump.adopt(target)

    def put(
        self,
        target: str | Target = "base",
        *,
        prompt: int = 10,
        max_tokens: int = 3,
        samples: int = 1,
        stream: Callable[[list[list[int]]], None] | None = None,
    ) -> Job:
        self._count += 1
        name = f"j{self._count}"
        if isinstance(target, str):
            target = Target(target, "tiny", "/models/tiny")
        body = {
            "prompt": {"chunks": [{"tokens": [prompt]}]},
            "num_samples": samples,
            "sampling_params": {"max_tokens": max_tokens},
        }

        def finish(outcome: Outcome) -> None:
            assert name not in self.outcomes, "a job was finished twice"
            self.outcomes[name] = outcome
            self.order.append(name)

        job = Job(name, target, json.dumps(body).encode(), samples, finish, stream)
        self.pump.put(job)
        return job

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():  # noqa: ASYNC110 (what is waited for has no event)
                await asyncio.sleep(0.001)

    async def all_done(self) -> None:
        await self.until(lambda: len(self.outcomes) == self._count)

    def error(self, job: Job) -> OpError:
        outcome = self.outcomes[job.id]
        assert isinstance(outcome, OpError), outcome
        return outcome

    def tokens(self, job: Job) -> list[int]:
        outcome = self.outcomes[job.id]
        assert isinstance(outcome, bytes), outcome
        return tokens_of(outcome)


def story(tell: Callable[[Stage], Awaitable[Any]], **options: Any) -> Stage:
    async def whole() -> Stage:
        stage = Stage(**options)
        try:
            await tell(stage)
        finally:
            await stage.pump.close()
        return stage

    return asyncio.run(asyncio.wait_for(whole(), 60))


def copy(name: str = "copy", run: str = "run") -> Target:
    return Target(name, "tiny", "/models/tiny", run=run)


def test_every_job_gets_its_own_answer() -> None:
    async def tell(stage: Stage) -> None:
        jobs = [stage.put(prompt=10 * n, max_tokens=1 + n % 7) for n in range(200)]
        await stage.all_done()
        for n, job in enumerate(jobs):
            assert stage.tokens(job) == [10 * n + 1 + i for i in range(1 + n % 7)]

    stage = story(tell)
    assert stage.engine.count(sampling.LoadSampler) == 1


def test_new_jobs_join_those_that_go_on() -> None:
    async def tell(stage: Stage) -> None:
        long = stage.put(max_tokens=100_000)
        await stage.until(lambda: stage.engine.count(sampling.Decode) > 0)
        for _ in range(3):
            short = stage.put(max_tokens=1)
            await stage.until(lambda job=short: job.id in stage.outcomes)
        assert long.id not in stage.outcomes
        stage.pump.cancel(long, OpError("enough"))

    story(tell)


def test_the_engine_holds_no_more_than_it_may() -> None:
    async def tell(stage: Stage) -> None:
        for n in range(30):
            stage.put(samples=1 + n % 4, max_tokens=2)
        await stage.all_done()

    stage = story(tell, max_samples=8)
    assert stage.engine.most_held <= 8


def test_a_request_larger_than_the_bound_is_done_alone() -> None:
    async def tell(stage: Stage) -> None:
        stage.put(samples=50)
        stage.put(samples=1)
        await stage.all_done()
        assert not [o for o in stage.outcomes.values() if isinstance(o, OpError)]

    assert story(tell, max_samples=8).engine.most_held == 50


def test_a_samplers_many_jobs_keep_their_order_and_block_no_other() -> None:
    async def tell(stage: Stage) -> None:
        greedy = [stage.put("a", max_tokens=1, samples=50) for _ in range(20)]
        modest = stage.put("b", max_tokens=1)
        await stage.all_done()
        assert stage.order.index(modest.id) <= 2
        assert [name for name in stage.order if name != modest.id] == [job.id for job in greedy]

    story(tell, max_samples=8)


def test_samplers_take_turns_when_few_can_be_loaded() -> None:
    async def tell(stage: Stage) -> None:
        for n in range(30):
            stage.put(f"sampler {n % 3}", max_tokens=1)
        await stage.all_done()
        assert {int(name[1:]) % 3 for name in stage.order[:6]} == {0, 1, 2}

    story(tell, max_samples=1, max_loaded=1)


def test_what_the_engine_refuses_fails_alone() -> None:
    async def tell(stage: Stage) -> None:
        good, bad, other = stage.put(), stage.put(prompt=FORBIDDEN), stage.put()
        await stage.all_done()
        assert "vocabulary" in stage.error(bad).message
        assert stage.tokens(good) == stage.tokens(other) == [11, 12, 13]

    story(tell)


def test_a_cancelled_job_leaves_line_or_engine() -> None:
    async def tell(stage: Stage) -> None:
        held = stage.put(max_tokens=10**6)
        waiting = stage.put(max_tokens=10**6)
        await stage.until(lambda: bool(stage.engine.held))
        assert stage.pump.ahead(held) is None
        assert stage.pump.ahead(waiting) == 0
        for job in (waiting, held):
            stage.pump.cancel(job, OpError("cancelled"))
            stage.pump.cancel(job, OpError("cancelled twice"))
        await stage.all_done()
        await stage.until(lambda: not stage.engine.held)
        assert stage.error(held).message == stage.error(waiting).message == "cancelled"
        after = stage.put()
        await stage.all_done()
        assert stage.tokens(after) == [11, 12, 13]

    stage = story(tell, max_samples=1)
    assert stage.engine.count(sampling.Sample) == 2


def test_few_samplers_are_loaded_and_all_are_served() -> None:
    async def tell(stage: Stage) -> None:
        for n in range(40):
            stage.put(f"sampler {n % 10}", max_tokens=1 + n % 3)
        await stage.all_done()
        assert all(isinstance(outcome, bytes) for outcome in stage.outcomes.values())

    assert story(tell, max_loaded=3).engine.most_loaded <= 3


def test_the_sampler_used_least_recently_makes_room() -> None:
    async def tell(stage: Stage) -> None:
        for name in ("a", "b", "a", "c"):
            stage.put(name)
            await stage.all_done()
            await asyncio.sleep(0.001)
        assert set(stage.engine.loaded) == {"a", "c"}

    story(tell, max_loaded=2)


def test_a_sampler_that_cannot_be_loaded_fails_its_own_jobs() -> None:
    def refuse(op: ops.Op) -> None:
        if isinstance(op, sampling.LoadSampler) and op.sampler == "broken":
            raise OpError("the checkpoint is damaged")

    async def tell(stage: Stage) -> None:
        stage.engine.before = refuse
        broken = [stage.put("broken") for _ in range(3)]
        good = stage.put("good")
        await stage.all_done()
        assert {stage.error(job).message for job in broken} == {"the checkpoint is damaged"}
        assert stage.tokens(good) == [11, 12, 13]

    story(tell)


def test_after_the_engines_death_samples_are_done_again_and_copies_made_again() -> None:
    async def tell(stage: Stage) -> None:
        await stage.make_copy(copy())
        base = [stage.put(max_tokens=20) for _ in range(3)]
        copied = [stage.put(copy(), max_tokens=20) for _ in range(3)]
        stage.engine.paused.clear()
        await stage.until(lambda: len(stage.engine.held) == 6)
        stage.engine.die()
        stage.engine.paused.set()
        await stage.all_done()
        assert all(stage.tokens(job) == list(range(11, 31)) for job in base + copied)
        assert stage.revivals == ["copy"]
        again = stage.put(copy())
        await stage.all_done()
        assert stage.tokens(again) == [11, 12, 13]
        assert stage.revivals == ["copy"]

    stage = story(tell)
    assert stage.engine.generation == 2
    assert stage.engine.count(sampling.LoadSampler) == 2


def test_a_copy_that_is_made_again_holds_up_no_other_sampler() -> None:
    async def tell(stage: Stage) -> None:
        stage.may_revive.clear()
        waits = stage.put(copy())
        cancelled = stage.put(copy())
        await stage.until(lambda: stage.revivals == ["copy"])
        other = stage.put()
        await stage.until(lambda: other.id in stage.outcomes)
        late = stage.put(copy())
        stage.pump.cancel(cancelled, OpError("enough"))
        assert stage.error(cancelled).message == "enough"
        stage.may_revive.set()
        await stage.all_done()
        assert stage.tokens(waits) == stage.tokens(late) == [11, 12, 13]
        assert stage.revivals == ["copy"]

    story(tell)


def test_a_copy_that_cannot_be_made_again_fails_its_own_jobs() -> None:
    async def tell(stage: Stage) -> None:
        def gone(target: Target) -> None:
            raise OpError("the weights are gone", "server")

        stage.revive = gone
        lost = [stage.put(copy()) for _ in range(2)]
        good = stage.put()
        await stage.all_done()
        assert {stage.error(job).message for job in lost} == {"the weights are gone"}
        assert stage.tokens(good) == [11, 12, 13]

        def broken(target: Target) -> None:
            raise ZeroDivisionError("by zero")

        stage.revive = broken
        job = stage.put(copy("another"))
        await stage.all_done()
        assert stage.error(job).category == "server"
        assert "by zero" in stage.error(job).message

    story(tell)


def test_an_engine_that_dies_while_a_copy_is_made_again_costs_time() -> None:
    async def tell(stage: Stage) -> None:
        def die(target: Target) -> None:
            if stage.engine.generation < 4:
                stage.engine.die()
                raise died()

        stage.revive = die
        job = stage.put(copy())
        await stage.all_done()
        assert stage.tokens(job) == [11, 12, 13]
        assert stage.revivals == ["copy"] * 4

    assert story(tell).engine.generation == 4


@pytest.mark.parametrize("what", ["decode", "load"])
def test_what_the_engine_dies_of_is_tried_twice(what: str) -> None:
    async def tell(stage: Stage) -> None:
        if what == "load":

            def die(op: ops.Op) -> None:
                if isinstance(op, sampling.LoadSampler) and op.sampler == "deadly":
                    stage.engine.die()

            stage.engine.before = die
        deadly = stage.put("deadly", prompt=DEADLY if what == "decode" else 1)
        await stage.all_done()
        assert stage.error(deadly).category == "server"
        good = stage.put("good")
        await stage.all_done()
        assert stage.tokens(good) == [11, 12, 13]

    assert story(tell).engine.generation == 3


def test_a_deadly_job_fails_alone() -> None:
    async def tell(stage: Stage) -> None:
        streamed: list[list[list[int]]] = []
        stage.engine.paused.clear()
        good = [stage.put(target) for target in ("a", "b", "a", "b")]
        deadly = [stage.put(target, prompt=DEADLY) for target in ("a", "b")]
        good += [stage.put(target) for target in ("a", "b", "c")]
        await stage.until(lambda: len(stage.engine.held) == 9)
        stage.engine.paused.set()
        await stage.until(lambda: stage.engine.generation == 2)
        good += [stage.put("a", stream=streamed.append), stage.put("d")]  # while it is looked for
        await stage.all_done()
        for job in good:
            assert stage.tokens(job) == [11, 12, 13]
        for job in deadly:
            assert stage.error(job).category == "server"
        assert streamed, "who came later was at no engine that died"

    # One dies of both, and one of each.
    assert story(tell).engine.generation == 4


def test_after_a_death_that_was_no_job_s_doing_all_go_on_together() -> None:
    async def tell(stage: Stage) -> None:
        dead = []

        def die(op: ops.Op) -> None:
            if isinstance(op, sampling.Decode) and len(stage.engine.held) == 5 and not dead:
                dead.append(op)
                stage.engine.die()

        stage.engine.before = die
        jobs = [stage.put() for _ in range(5)]
        await stage.until(lambda: bool(dead))
        stage.engine.most_held = 0
        await stage.all_done()
        assert stage.engine.most_held == 1
        jobs += [stage.put() for _ in range(5)]
        await stage.all_done()
        assert stage.engine.most_held == 5
        for job in jobs:
            assert stage.tokens(job) == [11, 12, 13]

    assert story(tell).engine.generation == 2


def test_a_copy_that_is_made_again_is_sampled_one_by_one() -> None:
    async def tell(stage: Stage) -> None:
        copy = Target("copy", "tiny", "/models/tiny", run="run")
        await stage.engine.request(ops.CreateRun("run", "tiny", "/m", ops.LoraSpec(4, 1)))
        await stage.make_copy(copy)
        stage.engine.paused.clear()
        deadly, good = stage.put(copy, prompt=DEADLY), [stage.put(copy), stage.put("base")]
        await stage.until(lambda: len(stage.engine.held) == 3)
        stage.may_revive.clear()
        stage.engine.paused.set()
        await stage.until(lambda: bool(stage.revivals))
        good.append(stage.put(copy))
        stage.may_revive.set()
        await stage.all_done()
        assert stage.error(deadly).category == "server"
        for job in good:
            assert stage.tokens(job) == [11, 12, 13]

    story(tell)


def died(*, during: bool = False) -> EngineDied:
    return EngineDied("the engine died", during=during)


def test_deaths_at_something_else_count_against_no_job() -> None:
    async def tell(stage: Stage) -> None:
        job = stage.put(max_tokens=20)
        for _ in range(5):
            stage.engine.paused.clear()
            await stage.until(lambda: bool(stage.engine.held))
            stage.engine.trains.clear()
            training = asyncio.create_task(stage.engine.request(ops.Status()))
            stage.engine.paused.set()
            await stage.until(lambda: isinstance(stage.engine.busy, ops.Status))
            stage.engine.die()
            stage.engine.trains.set()
            with pytest.raises(EngineDied):
                await training
        await stage.all_done()
        assert stage.tokens(job) == list(range(11, 31))

    story(tell)


def test_an_engine_that_does_not_start_fails_what_waits() -> None:
    async def tell(stage: Stage) -> None:
        async def broken() -> int:
            raise died()

        works, stage.engine.ensure_started = stage.engine.ensure_started, broken
        job = stage.put()
        await stage.all_done()
        assert stage.error(job).category == "server"
        stage.engine.ensure_started = works
        job = stage.put()
        await stage.all_done()
        assert stage.tokens(job) == [11, 12, 13]

    story(tell)


def test_a_decode_that_fails_fails_what_is_held_and_no_more() -> None:
    async def tell(stage: Stage) -> None:
        def refuse(op: ops.Op) -> None:
            if isinstance(op, sampling.Decode):
                stage.engine.before = lambda op: None
                raise OpError("out of memory", "server")

        stage.engine.before = refuse
        jobs = [stage.put(max_tokens=50) for _ in range(3)]
        await stage.all_done()
        assert {stage.error(job).message for job in jobs} == {"out of memory"}
        good = stage.put()
        await stage.all_done()
        assert stage.tokens(good) == [11, 12, 13]
        assert not stage.engine.held

    story(tell)


def test_what_the_engine_does_not_know_is_not_waited_for() -> None:
    async def tell(stage: Stage) -> None:
        job = stage.put(max_tokens=1000)
        await stage.until(lambda: bool(stage.engine.held))
        stage.engine.held.clear()
        await stage.all_done()
        assert "lost" in stage.error(job).message

    story(tell)


def test_tokens_are_streamed_in_order_and_whole() -> None:
    async def tell(stage: Stage) -> None:
        seen: list[int] = []
        job = stage.put(max_tokens=50, samples=2, stream=lambda new: seen.extend(new[1]))
        await stage.all_done()
        assert seen == stage.tokens(job)

    story(tell)


def test_a_deleted_checkpoint_says_so(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        job = stage.put(Target("gone", "tiny", "/models/tiny", str(tmp_path / "gone")))
        await stage.all_done()
        assert "deleted" in stage.error(job).message
        assert str(tmp_path) not in stage.error(job).message

    story(tell)


def test_training_and_sampling_both_go_on() -> None:
    async def tell(stage: Stage) -> None:
        trained = 0

        async def train() -> None:
            nonlocal trained
            while True:
                async with stage.turns.training():
                    await stage.engine.request(ops.Status())
                    await asyncio.sleep(0.005)
                trained += 1

        training = asyncio.create_task(train())
        stage.put(max_tokens=60)
        await stage.all_done()
        training.cancel()
        await asyncio.wait([training])
        assert trained >= 3

    story(tell)
