"""The last batches of a run, token by token, on a fake engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, select, update

from jupyter_tinker.server import batches as batches_module
from jupyter_tinker.server import chat
from jupyter_tinker.server.batches import Wish
from jupyter_tinker.server.history import HistoryGone
from jupyter_tinker.server.schema import OperationRow, PayloadRow, RequestRow
from tests.byte_pairs import byte_pairs
from tests.server.fake_engine import FakeEngine
from tests.server.fake_runs import INFINITE
from tests.server.one_service import RUN, Asked, Client, add_session, make_service, optim_step
from tests.server.token_runs import TokenRuns, batch

pytest_plugins = ["pytest_jupyter.jupyter_server"]
SAID = "Grüße 👋!"
EASY, HARD = [1, 2, 3], [9, 40, 41]


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.runs = TokenRuns()
    return engine


@pytest.fixture
def client(tmp_path: Path, engine: FakeEngine, jp_asyncio_loop: Any) -> Iterator[Client]:
    """Of a run on an engine that gives log-probabilities."""
    client = Client(make_service(tmp_path, engine))
    add_session(client.service._database)

    async def begin() -> None:
        client.service.start("here")
        await client.create()

    jp_asyncio_loop.run_until_complete(begin())
    yield client
    jp_asyncio_loop.run_until_complete(client.service.stop())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that has a tokenizer of single bytes and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = byte_pairs(257, ["<|end|>"], [])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


async def step(client: Client, *asked: Asked) -> None:
    for one in (*asked, optim_step()):
        await client.ask(one)


async def listed(client: Client, limit: int = 20) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.service.batches.list(RUN, limit))["batches"]
    return found


async def look(client: Client, id: int, sequences: int = 8, tokens: int = 100) -> dict[str, Any]:
    run = await client.service.run(RUN)
    return await client.service.batches.view(run.row, Wish(id, sequences, tokens))


def request_at(client: Client, position: int) -> str:
    row = client.service._database.run(lambda db: db.get(OperationRow, (RUN, position)))
    assert row is not None
    return str(row.request_id)


async def test_what_came_for_one_step_is_one_batch(client: Client) -> None:
    await step(client, batch(EASY))
    await step(client, batch(EASY, HARD), batch(EASY, HARD, EASY))
    await client.ask(batch(HARD))
    found = await listed(client)
    assert [one["step"] for one in found] == [3, 2, 1]
    assert [one["stepped"] for one in found] == [False, True, True]
    assert [one["requests"] for one in found] == [1, 2, 1]
    assert [one["sequences"] for one in found] == [1, 5, 1]
    steps = await client.service.run_store.steps(RUN, 0, 10)
    assert [one["loss_mean"] for one in found[1:]] == [row.loss_mean for row in reversed(steps)]
    assert await listed(client, 1) == found[:1]


async def test_the_hardest_of_all_requests_with_the_numbers_that_clients_got(
    client: Client,
) -> None:
    await step(client, batch(EASY, HARD), batch([1, 2, 4], [50, 60, 70], EASY))
    (one,) = await listed(client)
    answer = await look(client, one["id"], sequences=3)
    assert answer["loss_fn"] == "cross_entropy"
    assert {**answer, **one} == answer
    first, second, third = answer["hardest"]
    assert [row["number"] for row in (first, second, third)] == [3, 1, 2]
    assert first["tokens"] == [50, 60, 70]
    told = TokenRuns().logprobs(np.asarray([60, 70]))
    assert first["logprobs"][0] is None
    assert [np.float32(value) for value in first["logprobs"][1:]] == told.tolist()
    assert [np.float32(value) for value in first["losses"][1:]] == (-2 * told).tolist()
    assert first["loss_mean"] == pytest.approx(-told.mean())
    assert len((await look(client, one["id"]))["hardest"]) == 5


async def test_text_is_what_the_models_tokenizer_makes_of_it(client: Client, folder: Path) -> None:
    text = chat.load(folder)
    tokens = [*text.encode(SAID), 0, *text.encode("👋")]
    await step(client, batch(tokens))
    run = await client.service.run(RUN)
    run.row.base_path = str(folder)
    (one,) = await listed(client)
    answer = await look(client, one["id"])
    (row,) = answer["hardest"]
    assert answer["problem"] is None
    assert row["tokens"] == tokens
    assert "".join(row["text"]) == f"{SAID}<|end|>👋"
    assert row["text"][2:4] == ["", "ü"]  # its first byte, and its last
    assert [row["text"][place] for place in row["special"]] == ["<|end|>"]
    cut = (await look(client, one["id"], tokens=3))["hardest"][0]
    assert (len(cut["text"]), cut["length"]) == (3, len(tokens))


async def test_a_model_without_a_tokenizer_is_shown_in_numbers(client: Client) -> None:
    await step(client, batch(HARD))
    (one,) = await listed(client)
    answer = await look(client, one["id"])
    assert "tokenizer.json" in answer["problem"]
    assert answer["hardest"][0]["text"] is None
    assert answer["hardest"][0]["tokens"] == HARD


async def test_nothing_waits_for_the_engine(client: Client, engine: FakeEngine) -> None:
    await step(client, batch(HARD))
    engine.trains.clear()
    waiting = await client.submit(batch(EASY))
    (one,) = await listed(client)
    assert (await look(client, one["id"]))["hardest"]
    assert await client.pending(waiting)
    engine.trains.set()
    await client.result(waiting)


async def test_a_batch_that_grows_is_looked_at_anew(client: Client) -> None:
    await client.ask(batch(EASY))
    (one,) = await listed(client)
    assert len((await look(client, one["id"]))["hardest"]) == 1
    await client.ask(batch(HARD))
    assert [row["number"] for row in (await look(client, one["id"]))["hardest"]] == [1, 0]
    await client.ask(optim_step())
    assert (await look(client, one["id"]))["stepped"]


async def test_evaluations_and_what_is_not_finite_are_no_batches(client: Client) -> None:
    await client.ask(batch(HARD, only=True))
    await client.ask(batch(HARD, loss=INFINITE))
    await client.ask(optim_step())
    assert await client.service.batches.list(RUN, 9) == {"batches": [], "problem": None}


async def test_branches_that_were_left_stay(client: Client) -> None:
    for tokens in (EASY, HARD):
        await step(client, batch(tokens))
    await client.ask(batch(EASY))
    await client.service.steering.rewind(RUN, 1, None, by="ada")
    await client.ask(batch(HARD))
    found = await listed(client)
    assert [(one["step"], one["branch"], one["stepped"]) for one in found] == [
        (2, 1, False),
        (3, 0, False),
        (2, 0, True),
        (1, 0, True),
    ]
    (shown,) = (await look(client, found[1]["id"]))["hardest"]
    assert shown["tokens"] == EASY


async def test_what_is_dropped_is_not_offered_and_says_so(client: Client) -> None:
    await step(client, batch(EASY), batch(HARD))
    await step(client, batch(HARD))
    new, old = await listed(client)
    dropped = delete(PayloadRow).where(PayloadRow.request_id == request_at(client, old["id"]))
    client.service._database.run(lambda db: db.execute(dropped))
    assert await listed(client) == [new]
    with pytest.raises(HistoryGone, match="no longer kept"):
        await look(client, old["id"])
    client.service._database.run(lambda db: db.execute(update(RequestRow).values(result=None)))
    answer = await client.service.batches.list(RUN, 9)
    assert answer["batches"] == []
    assert "history_bytes" in answer["problem"]
    with pytest.raises(HistoryGone, match="no batch 4711"):
        await look(client, 4711)
    with pytest.raises(HistoryGone, match=f"no batch {old['id'] + 2}"):  # that is the step
        await look(client, old["id"] + 2)


@pytest.mark.parametrize(("bound", "value"), [("_DATUMS", 3), ("_BYTES", 250)])
async def test_a_batch_beyond_the_bounds_is_shown_in_part(
    client: Client, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    await step(client, batch(EASY), batch(HARD, HARD, HARD), batch(HARD))
    (one,) = await listed(client)
    monkeypatch.setattr(batches_module, bound, value)
    answer = await look(client, one["id"])
    assert [row["number"] for row in answer["hardest"]] == [4, 0]
    assert answer["problem"].startswith("Of 5 sequences 2 were")


async def test_a_part_that_cannot_be_read_spoils_no_other(client: Client) -> None:
    await step(client, batch(EASY), batch(HARD))
    (one,) = await listed(client)
    damaged = update(PayloadRow).where(PayloadRow.request_id == request_at(client, one["id"]))
    client.service._database.run(lambda db: db.execute(damaged.values(body=b"\xff\xff")))
    answer = await look(client, one["id"])
    assert [row["number"] for row in answer["hardest"]] == [1]
    assert "cannot be shown" in answer["problem"]


async def test_old_results_go_but_those_of_the_last_batches(client: Client) -> None:
    for number in range(20):
        await step(client, batch([1, 2, number]))
    await client.ask(batch(HARD, only=True))
    await client.service.futures.tidy(3600)
    await client.service.journal.drop_results(time.time() + 1)
    query = select(RequestRow.seq_id, RequestRow.kind).where(RequestRow.result.is_not(None))
    kept = client.service._database.run(lambda db: db.execute(query.order_by("seq_id")).all())
    assert {kind for _, kind in kept if kind != "create_model"} == {"forward_backward"}
    assert [seq_id for seq_id, kind in kept if kind == "forward_backward"] == list(range(9, 40, 2))
    assert [one["step"] for one in await listed(client)] == list(range(20, 4, -1))
