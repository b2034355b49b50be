"""Sample previews, by a whole service on a fake engine: when they come, what they copy, and what is
kept and told of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from jupyter_tinker.server import preview_store
from jupyter_tinker.wire.ops import OpError
from jupyter_tinker.wire.previews import Preview
from tests.server import previewed
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Client
from tests.server.previewed import HELLO, Stage, held_up, replace_every

pytest_plugins = ["pytest_jupyter.jupyter_server"]
folder, stage = previewed.folder, previewed.stage


async def test_every_so_many_steps_the_weights_of_that_very_step_answer(stage: Stage) -> None:
    await stage.ask()
    for count in (1, 2, 3):
        await stage.steps(2)
        await stage.rounds(count)
    await stage.idle()
    first, second, third = await stage.rounds(3)
    assert [one["step"] for one in (first, second, third)] == [2, 4, 6]
    assert [step for step, _, _ in stage.copied] == [2, 4, 6]
    assert all(weights == copy for _, weights, copy in stage.copied)
    assert len({copy for _, _, copy in stage.copied}) == 3
    assert (first["branch"], first["actor"], first["error"], first["skipped"]) == (0, None, None, 0)
    assert [answer["prompt"] for answer in first["answers"]] == HELLO.prompts
    for answer in first["answers"]:
        assert (answer["tokens"], answer["end"], answer["error"]) == (3, "length", None)
        assert answer["text"]


async def test_without_prompts_or_steps_nothing_is_copied(stage: Stage) -> None:
    await stage.steps(2)
    await stage.ask(Preview(prompts=["Hello"]))  # on request only
    await stage.steps(2)
    await stage.ask(Preview(every=1))
    await stage.steps(2)
    assert stage.copied == []


async def test_numbers_of_the_run_are_the_same_with_and_without(stage: Stage) -> None:
    plain = await stage.steps(4)
    weights = stage.engine.runs.states[RUN]
    await stage.service.steering.rewind(RUN, 0, None, by="ada")
    await stage.ask(replace_every(HELLO, 1))
    assert await stage.steps(4) == plain
    assert stage.engine.runs.states[RUN] == weights
    await stage.rounds(1)


async def test_what_comes_due_meanwhile_is_skipped_and_counted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.ask(replace_every(HELLO, 1))
    with held_up(monkeypatch):
        await stage.steps(4)
    (first,) = await stage.rounds(1)
    assert (first["step"], first["skipped"]) == (1, 3)
    assert [step for step, _, _ in stage.copied] == [1]
    await stage.steps(1)
    assert [(one["step"], one["skipped"]) for one in await stage.rounds(2)] == [(1, 3), (5, 0)]


async def test_a_paused_run_answers_on_request(stage: Stage) -> None:
    await stage.ask(Preview(prompts=["Hello"]))
    await stage.steps(1)
    await stage.service.steering.change(RUN, {"paused": True}, by="ada")
    await stage.service.previews.now(RUN, by="bob")
    (one,) = await stage.rounds(1)
    assert (one["step"], one["actor"], one["error"]) == (1, "bob", None)
    assert len(one["answers"]) == 1


async def test_one_is_asked_for_while_another_goes_on(stage: Stage) -> None:
    await stage.ask()
    stage.engine.paused.clear()
    await stage.service.previews.now(RUN, by="bob")
    assert (await stage.service.previews.describe(RUN))["sampling"] == 0
    with pytest.raises(OpError, match="Step 0 of this run is still being sampled"):
        await stage.service.previews.now(RUN, by="bob")
    stage.engine.paused.set()
    await stage.rounds(1)
    await stage.idle()
    assert (await stage.service.previews.describe(RUN))["sampling"] is None


async def test_an_idle_run_is_brought_back_for_it(stage: Stage) -> None:
    await stage.ask()
    await stage.steps(1)
    weights = stage.engine.runs.states[RUN].weights
    run = await stage.service.run(RUN)
    async with run.lock:
        await stage.service.lives.unload(run)
    assert stage.engine.runs.states == {}
    await stage.service.previews.now(RUN, by="bob")
    await stage.rounds(1)
    assert stage.copied == [(1, weights, weights)]


async def test_the_branch_of_a_rewound_run_is_told(stage: Stage) -> None:
    await stage.ask()
    await stage.steps(2)
    await stage.rounds(1)
    await stage.service.steering.rewind(RUN, 1, None, by="ada")
    await stage.steps(1)
    assert [(one["step"], one["branch"]) for one in await stage.rounds(2)] == [(2, 0), (2, 1)]


async def test_the_setting_outlives_the_server(stage: Stage, folder: Path) -> None:
    await stage.ask()
    await stage.steps(1)
    await stage.service.stop()
    stage.engine = FakeEngine()
    stage.engine.after = stage._look
    service = stage.service = stage._serve()
    service.start("here again")
    client, before = Client(service), stage.client
    client.seq_id = before.seq_id
    assert (await service.previews.describe(RUN))["changed_by"] == "ada"
    stage.client = client
    await stage.steps(1)
    (one,) = await stage.rounds(1)
    assert (one["step"], one["error"]) == (2, None)


async def test_changes_and_answers_are_told_as_events(stage: Stage) -> None:
    await stage.ask()
    await stage.ask()  # which changes nothing
    await stage.steps(2)
    await stage.rounds(1)
    events = await stage.service.run_store.run_events(RUN, 0, 100)
    told = [(event.kind, event.actor, event.step) for event in events]
    assert told[-2:] == [("preview_changed", "ada", 0), ("preview_sampled", None, 2)]
    assert [kind for kind, _, _ in told].count("preview_changed") == 1
    assert events[-2].data == HELLO.model_dump()


async def test_old_answers_are_thinned_and_the_first_stays(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview_store, "MOST_ROUNDS", 8)
    store = stage.service.previews._store
    for step in range(1, 41):
        await store.add_round(RUN, step=step, by=None, answers=[])
        assert len(await store.rounds(RUN, 0, 100)) <= 8
    steps = [row.step or 0 for row in await store.rounds(RUN, 0, 100)]
    assert steps[0] == 1
    assert steps[-4:] == [37, 38, 39, 40]
    gaps = [b - a for a, b in pairwise(steps)]
    assert gaps == sorted(gaps, reverse=True)
