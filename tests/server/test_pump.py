"""The pump: what it hands to the engine, in which order, and how much of it at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from jupyter_tinker.server.samplers import Target
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire.ops import OpError
from tests.server.fake_engine import FORBIDDEN
from tests.server.pumping import Stage, story


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
