"""What becomes of the pump's jobs and of copies of weights when the engine dies."""

from __future__ import annotations

import asyncio

import pytest

from jupyter_tinker.server.engine_client import EngineDied
from jupyter_tinker.server.samplers import Target
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire.ops import OpError
from tests.server.fake_engine import DEADLY
from tests.server.pumping import Stage, copy, story


def died(*, during: bool = False) -> EngineDied:
    return EngineDied("the engine died", during=during)


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
