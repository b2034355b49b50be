"""Sample previews, by a whole service on a fake engine: when they come, what they copy, and that
nothing that goes wrong with one disturbs its run."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jupyter_tinker.server import preview_store, previews
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.model_folder import BaseModel
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops, sampling, tinker
from jupyter_tinker.wire.ops import OpError
from jupyter_tinker.wire.previews import Preview, parse_preview
from jupyter_tinker.wire.tinker import BadRequest
from tests.conftest import CHAT_TEMPLATE
from tests.server.fake_engine import DEADLY, FORBIDDEN, FakeEngine
from tests.server.one_service import (
    RUN,
    SESSION,
    Client,
    OneModel,
    add_session,
    ask,
    make_service,
)

pytest_plugins = ["pytest_jupyter.jupyter_server"]
HELLO = Preview(prompts=["Hello", "And you?"], every=2, max_tokens=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that has a tokenizer of bytes and a chat template, and no weights."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False, special_tokens=["<end>"]
    )
    tokenizer.train_from_iterator(["hello"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


class Stage:
    """A service, its engine, and a client of its one run."""

    def __init__(self, state: Path, model: Path) -> None:
        self.state = state
        self.engine = FakeEngine()
        self.model = model
        self.service = self._serve()
        self.client = Client(self.service)
        self.copied: list[tuple[int, str, str]] = []  # step, weights, and those of the copy
        self.engine.after = self._look

    def _serve(self) -> TinkerService:
        service = make_service(self.state, self.engine, Database(default_url(self.state)))
        catalog = _Catalog(self.model)
        service.catalog = service._creation._catalog = service.sampling._catalog = catalog  # type: ignore[assignment]
        return service

    async def begin(self) -> None:
        add_session(self.service._database)
        self.service.start("here")
        await self.client.create()

    def _look(self, op: ops.Op) -> None:
        if isinstance(op, sampling.SnapshotSampler):
            run = self.engine.runs.states[op.run]
            self.copied.append((run.step, run.weights, self.engine.copies[op.sampler]))

    async def ask(self, preview: Preview = HELLO) -> None:
        await self.service.previews.change(RUN, preview, by="ada")

    async def steps(self, count: int) -> list[dict[str, Any]]:
        return [await self.client.step(n) for n in range(count)]

    async def rounds(self, count: int) -> list[dict[str, Any]]:
        """The run's rounds, once there are so many."""
        async with asyncio.timeout(10):
            while len(rows := await self.service.previews.rounds(RUN, 0, 1000)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return [{"step": row.step, "actor": row.actor, **row.data} for row in rows]

    async def idle(self) -> None:
        """Until no preview is under way, nor anything of one left in the engine."""
        await until(lambda: not self.service.previews._going and not self.engine.loaded)

    async def end(self) -> None:
        """End the client's session, and with it the run."""
        reason = tinker.FinishReason(type="success")
        await self.service.sessions.finish(SESSION, tinker.Finish(reason=reason))
        run = await self.service.run(RUN)
        await until(lambda: run.ended is not None)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)


class _Catalog(OneModel):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, name: str, *, allow_path: bool = False) -> BaseModel:
        return replace(super().resolve(name, allow_path=allow_path), path=self.folder)


@pytest.fixture
def stage(tmp_path: Path, folder: Path, jp_asyncio_loop: Any) -> Iterator[Stage]:
    async def made() -> Stage:
        stage = Stage(tmp_path, folder)
        await stage.begin()
        return stage

    stage = jp_asyncio_loop.run_until_complete(made())
    yield stage
    stage.engine.paused.set()
    jp_asyncio_loop.run_until_complete(stage.service.stop())


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


def replace_every(preview: Preview, every: int) -> Preview:
    return preview.model_copy(update={"every": every})


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, no preview gets further than to its copy."""
    go, encoded = threading.Event(), previews.encoded

    def wait(*asked: Any) -> Any:
        assert go.wait(10)
        return encoded(*asked)

    with monkeypatch.context() as patched:
        patched.setattr(previews, "encoded", wait)
        yield
    go.set()


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


async def test_the_branch_of_a_rewound_run_is_told(stage: Stage) -> None:
    await stage.ask()
    await stage.steps(2)
    await stage.rounds(1)
    await stage.service.steering.rewind(RUN, 1, None, by="ada")
    await stage.steps(1)
    assert [(one["step"], one["branch"]) for one in await stage.rounds(2)] == [(2, 0), (2, 1)]


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
    events = await stage.service.journal.run_events(RUN, 0, 100)
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


@pytest.mark.parametrize(
    ("chat", "encoded"),
    [
        (None, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (True, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (False, "Hi"),
    ],
)
async def test_a_prompt_is_what_a_user_says_where_there_is_a_template(
    stage: Stage, folder: Path, chat: bool | None, encoded: str
) -> None:
    await stage.ask(Preview(prompts=["Hi"], chat=chat))
    await stage.service.previews.now(RUN, by="ada")
    await stage.rounds(1)
    (op,) = [op for op in stage.engine.ops if isinstance(op, sampling.Sample)]
    body = json.loads(op.body)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert body["prompt"]["chunks"][0]["tokens"] == tokenizer.encode(encoded).ids
    assert body["sampling_params"] == {"max_tokens": 64, "temperature": 0.0, "seed": 0}


async def test_a_model_without_a_template_or_a_tokenizer(tmp_path: Path, folder: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    mute = tmp_path / "mute"
    mute.mkdir()
    for model, chat, told in ((plain, True, "no chat template"), (mute, None, "no tokenizer")):
        state = tmp_path / f"state-{model.name}"
        state.mkdir()
        stage = Stage(state, model)
        await stage.begin()
        with pytest.raises(BadRequest, match=told):
            await stage.ask(Preview(prompts=["Hi"], chat=chat))
        assert (await stage.service.previews.describe(RUN))["prompts"] == []
        await stage.service.stop()


BOUNDED: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ["a"] * 6}, "prompts must be a list of at most 5"),
    ({"prompts": [""]}, "prompts must be"),
    ({"prompts": ["a" * 4001]}, "each of 1 to 4000 characters"),
    ({"prompts": "a"}, "prompts must be"),
    ({"every": 0}, "every must be"),
    ({"every": 2.5}, "every must be"),
    ({"max_tokens": 257}, "max_tokens must be a whole number from 1 to 256"),
    ({"temperature": -1}, "temperature must be"),
    ({"temperature": float("nan")}, "temperature must be"),
    ({"seed": -1}, "seed must be"),
    ({"chat": "yes"}, "chat must be"),
    ({"top_p": 1}, "A preview has no 'top_p'; it has prompts, every"),
]


@pytest.mark.parametrize(("body", "told"), BOUNDED)
def test_settings_that_make_no_sense(body: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        parse_preview(body)


@pytest.mark.parametrize("body", [b"[]", b"{", b'"x"'])
def test_bodies_that_are_no_settings(body: bytes) -> None:
    with pytest.raises(BadRequest, match="must be a JSON object"):
        parse_preview(body)


def test_when_one_is_due() -> None:
    assert [step for step in range(1, 8) if HELLO.due(step)] == [2, 4, 6]
    assert not Preview(prompts=["a"]).due(2)
    assert not Preview(every=1).due(2)
