"""Nothing that goes wrong with a preview disturbs its run or other clients, and it is told."""

from __future__ import annotations

import json

import pytest

from jupyter_tinker.server import previews
from jupyter_tinker.wire import ops, sampling
from jupyter_tinker.wire.ops import OpError
from jupyter_tinker.wire.previews import Preview
from tests.server import previewed
from tests.server.fake_engine import DEADLY, FORBIDDEN
from tests.server.one_service import RUN, SESSION, ask
from tests.server.previewed import HELLO, Stage, held_up, replace_every, until

pytest_plugins = ["pytest_jupyter.jupyter_server"]
folder, stage = previewed.folder, previewed.stage


async def test_what_cannot_be_asked_is_refused_with_a_sentence(stage: Stage) -> None:
    asked = stage.service.previews
    with pytest.raises(OpError, match="no prompts"):
        await asked.now(RUN, by="ada")
    await stage.ask()
    await stage.end()
    for refused in (asked.now(RUN, by="ada"), asked.change(RUN, HELLO, by="ada")):
        with pytest.raises(OpError, match=r"has ended, so it answers no prompts: The session"):
            await refused
    assert (await asked.describe(RUN))["prompts"] == HELLO.prompts


async def test_a_run_that_ends_meanwhile_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.ask()
    with held_up(monkeypatch):
        await stage.service.previews.now(RUN, by="ada")
        await until(lambda: bool(stage.copied))
        await stage.end()
        await until(lambda: not stage.engine.loaded)
    (one,) = await stage.rounds(1)
    assert "has ended" in one["error"]
    await stage.idle()


async def test_a_deadly_prompt_is_told_of_and_the_run_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await stage.steps(2)
    encoded = previews.encoded
    monkeypatch.setattr(
        previews, "encoded", lambda *asked: (encoded(*asked)[0], [[DEADLY] for _ in range(2)])
    )
    await stage.ask()
    await stage.service.previews.now(RUN, by="ada")
    (one,) = await stage.rounds(1)
    assert one["error"] == "The engine ended before this was sampled; the run goes on."
    assert [answer["text"] for answer in one["answers"]] == [None, None]
    monkeypatch.undo()
    await stage.steps(2)
    assert [metrics["optimizer_step"] for metrics in before] == [1, 2]
    assert [one["error"] for one in await stage.rounds(2)][1] is None
    await stage.idle()


async def test_a_prompt_that_is_refused_leaves_the_others_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = previews.encoded
    monkeypatch.setattr(
        previews, "encoded", lambda *asked: (encoded(*asked)[0], [[FORBIDDEN], [5]])
    )
    await stage.ask()
    await stage.service.previews.now(RUN, by="ada")
    (one,) = await stage.rounds(1)
    first, second = one["answers"]
    assert one["error"] is None
    assert (first["text"], second["error"]) == (None, None)
    assert "not in the vocabulary" in first["error"]
    assert second["tokens"] == 3
    await stage.idle()


async def test_an_engine_that_dies_at_the_copy_costs_no_step(stage: Stage) -> None:
    await stage.ask()
    deaths = iter([True])

    def die(op: ops.Op) -> None:
        if isinstance(op, sampling.SnapshotSampler) and next(deaths, False):
            stage.engine.die()

    stage.engine.before = die
    steps = await stage.steps(4)
    assert [metrics["optimizer_step"] for metrics in steps] == [1, 2, 3, 4]
    first, second = await stage.rounds(2)
    assert "The engine ended" in first["error"]
    assert (second["step"], second["error"]) == (4, None)


async def test_one_that_takes_too_long_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyter_tinker.server.previews._LONGEST", 0.01)
    stage.engine.paused.clear()
    await stage.ask()
    await stage.service.previews.now(RUN, by="ada")
    (one,) = await stage.rounds(1)
    assert "so it was given up" in one["error"]
    stage.engine.paused.set()
    await stage.idle()
    assert stage.engine.held == {}


async def test_a_copy_takes_no_place_of_those_that_clients_have(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.ask(replace_every(HELLO, 1))
    with held_up(monkeypatch):
        await stage.steps(1)
        await until(lambda: bool(stage.copied))
        for number in range(3):  # as many as are kept
            await stage.client.ask(ask("save_weights_for_sampler", sampling_session_seq_id=number))
        assert len(stage.engine.loaded) == 4
    (one,) = await stage.rounds(1)
    assert one["error"] is None
    await until(lambda: len(stage.engine.loaded) == 3)
    assert sorted(stage.engine.loaded) == [f"{SESSION}:sample:{n}" for n in range(3)]
    rows = await stage.service.sampling.samplers.of_session(SESSION)
    assert [row.ended for row in rows] == [None] * 3


@pytest.mark.parametrize(("patience", "first"), [(1000.0, ["client"]), (0.0, [])])
async def test_clients_go_first_and_are_waited_for_so_long(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, patience: float, first: list[str]
) -> None:
    monkeypatch.setattr(previews, "_PATIENCE", patience)
    await stage.ask(Preview(prompts=["Hello"], max_tokens=1))
    target, _ = await stage.service.sampling.target("tiny", allow_path=True)
    ended: list[str] = []
    before: list[list[str]] = []  # what had ended when the preview was begun

    def look(op: ops.Op) -> None:
        if isinstance(op, sampling.Sample) and op.sampler != target.name:
            before.append(list(ended))

    stage.engine.before = look
    body = {"prompt": {"chunks": [{"tokens": [1]}]}, "sampling_params": {"max_tokens": 1500}}
    job = stage.service.sampling.job(
        target, json.dumps(body).encode(), 1, lambda _: ended.append("client"), None
    )
    stage.service.sampling.pump.put(job)
    await until(lambda: bool(stage.engine.held))
    await stage.service.previews.now(RUN, by="ada")
    await stage.rounds(1)
    assert before == [first]
    stage.service.sampling.pump.cancel(job, OpError("enough"))
