"""A run of an earlier life of the server is as it was: its place, what is pending, its sums."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server.backlog import Backlog
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.futures import Futures, Request, success
from jupyter_tinker.server.history import History, Kind, operation
from jupyter_tinker.server.journal import Journal
from jupyter_tinker.server.registry import KINDS, Registry, UnknownRun
from jupyter_tinker.server.run_store import RunStore
from jupyter_tinker.server.runs import Run, Spoiled
from jupyter_tinker.server.schema import BranchRow, RunRow
from jupyter_tinker.wire.controls import Controls
from jupyter_tinker.wire.ops import ForwardBackwardStats, LoraSpec
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, Asked, ask, forward_backward, make_service, optim_step

STATS: dict[str, Any] = {
    "loss_sum": 6.0, "weight_sum": 3.0, "num_tokens": 10, "num_datums": 2, "seconds": 0.5,
}  # fmt: skip


class FakeTrainer:
    """Notes what it is to do; does it unless it is held."""

    def __init__(self, futures: Futures) -> None:
        self.done: list[tuple[int, str, bool]] = []
        self.given_up: list[tuple[int, str]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._futures = futures

    async def perform(self, run: Run, request: Request) -> None:
        await self.go_on.wait()
        self.done.append((request.seq_id, request.kind, request.forward_only))
        answer = {"error": run.ended} if run.ended else {"done": request.seq_id}
        self._futures.complete(request, success(answer))

    async def give_up(self, run: Run, request: Request, reason: str) -> None:
        self.given_up.append((request.seq_id, reason))


class Life:
    """A registry of one life of a server on a database."""

    def __init__(self, folder: Path, name: str = "now") -> None:
        self.database = Database(default_url(folder))
        backlog = Backlog(self.database)
        self.journal = Journal(self.database, name)
        self.history = History(self.database, backlog)
        self.futures = Futures(self.journal, backlog)
        self.spawned: list[Any] = []
        self.registry = Registry(
            self.journal,
            RunStore(self.database),
            self.history,
            self.futures,
            lambda work: self.spawned.append(asyncio.ensure_future(work)),
            patience=0.05,
            log=logging.getLogger("test"),
        )
        self.trainer = self.registry.trainer = FakeTrainer(self.futures)

    def store(self, *rows: Any) -> None:
        self.database.run(lambda db: db.add_all(rows))

    async def accept(self, seq_id: int, asked: Asked, run_id: str = RUN) -> Request:
        """As a server does that dies before it is done."""
        kind, payload, only = asked(run_id, seq_id)
        request = Request(f"{run_id} {seq_id}", run_id, seq_id, kind, payload, only)
        await self.futures.accept(request)
        return request

    async def finish(self, request: Request) -> None:
        self.futures.complete(request, success({}))
        await self.futures.stored()

    async def settle(self, run: Run) -> None:
        await self.registry.drained(run)
        await self.futures.stored()


def tell(folder: Path, story: Callable[[Life], Awaitable[None]]) -> None:
    async def whole() -> None:
        life = Life(folder)
        await story(life)
        await life.registry.close()
        await life.database.close()

    asyncio.run(asyncio.wait_for(whole(), 10))


def run_row(run_id: str = RUN, **values: Any) -> RunRow:
    given = {
        "session_id": "s",
        "owner": "ada",
        "base_model": "tiny",
        "base_path": "/models/tiny",
        "architecture": "LlamaForCausalLM",
        "lora": {"rank": 4, "seed": 1},
        "created_at": 1.0,
        "last_request_at": 1.0,
        **values,
    }
    return RunRow(id=run_id, **given)


def done(position: int, kind: Kind, step: int = 0, **data: Any) -> Any:
    return operation(RUN, position, kind, step, **data)


def test_what_is_pending_is_done_in_its_order(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        life.store(run_row())
        await life.finish(await life.accept(0, ask("create_model")))
        await life.finish(await life.accept(1, optim_step()))
        for seq_id in (4, 2):
            await life.accept(seq_id, forward_backward(seq_id))
        await life.accept(3, forward_backward(3, only=True))
        run = await life.registry.get(RUN)
        assert life.trainer.done == []
        await life.settle(run)
        assert life.trainer.done == [
            (2, "forward_backward", False),
            (3, "forward_backward", True),
            (4, "forward_backward", False),
        ]
        assert await life.futures.poll(f"{RUN} 4", 1.0) == success({"done": 4})

    tell(tmp_path, story)


def test_a_creation_that_is_pending_is_done(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        life.store(run_row())
        await life.accept(0, ask("create_model"))
        await life.accept(1, forward_backward(1))
        run = await life.registry.get(RUN)
        await life.settle(run)
        assert [number for number, _, _ in life.trainer.done] == [0, 1]

    tell(tmp_path, story)


def test_numbers_go_on_behind_what_is_done(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        life.store(run_row())
        for seq_id in range(3):
            await life.finish(await life.accept(seq_id, optim_step()))
        await life.accept(4, optim_step())  # 3 was on its way when the server died
        run = await life.registry.get(RUN)
        await life.settle(run)
        assert life.trainer.done == []
        late = Request("late", RUN, 3, "optim_step", b"")
        await life.registry.submit(run, late)
        await life.settle(run)
        assert [number for number, _, _ in life.trainer.done] == [3, 4]

    tell(tmp_path, story)


def test_a_number_that_is_lost_with_the_server_is_given_up(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        life.store(run_row())
        await life.finish(await life.accept(0, optim_step()))
        await life.accept(2, optim_step())
        await life.registry.get(RUN)
        await asyncio.sleep(0.15)
        ((number, reason),) = life.trainer.given_up
        assert number == 2
        assert "number 1" in reason

    tell(tmp_path, story)


def test_a_request_that_is_sent_again_is_the_first_one(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        life.store(run_row())
        await life.finish(await life.accept(0, optim_step()))
        first = await life.accept(1, optim_step())
        run = await life.registry.get(RUN)
        again = Request("again", RUN, 1, "optim_step", b"")
        assert await life.registry.submit(run, again) == first.id
        await life.settle(run)
        assert [number for number, _, _ in life.trainer.done] == [1]
        assert await life.registry.submit(run, again) == first.id
        await life.settle(run)
        assert len(life.trainer.done) == 1

    tell(tmp_path, story)


def test_what_was_accumulated_is_recalled(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        spoiled = {"reason": "the loss is not finite", "skips": True, "not_finite": True}
        infinite = {**STATS, "loss_sum": None, "not_finite": "the loss is not finite"}
        life.store(
            run_row(),
            done(1, "create_model"),
            done(2, "forward_backward", stats=STATS),
            done(3, "optim_step", 1),
            done(4, "forward_backward", 1, stats=STATS),
            done(5, "forward_backward", 1, stats=STATS),
            done(6, "spoiled", 1, stats=infinite, **spoiled),
        )
        run = await life.registry.get(RUN)
        assert (run.step, run.place.head, run.place.branch) == (1, 6, 0)
        assert run.spoiled == Spoiled("the loss is not finite", skips=True, not_finite=True)
        totals = run.totals
        assert (totals.tokens, totals.datums, totals.weight_sum) == (30, 6, 9.0)
        assert totals.loss_mean is None  # one of the losses is no number

    tell(tmp_path, story)


def test_sums_are_those_that_a_run_would_have_had(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        life.store(run_row(), done(1, "create_model"), done(2, "forward_backward", stats=STATS))
        run = await life.registry.get(RUN)
        expected = Run(run_row(), run.lora).totals
        expected.add(ForwardBackwardStats(**STATS))
        assert run.totals == expected
        assert run.totals.loss_mean == 2.0
        assert run.spoiled is None

    tell(tmp_path, story)


def test_a_rewound_run_is_where_it_was_taken_to(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        branch = BranchRow(
            run_id=RUN, number=1, first_position=5, parent_position=1, step=0,
            created_at=1.0, actor="ada",
        )  # fmt: skip
        life.store(
            run_row(),
            done(1, "create_model"),
            done(2, "forward_backward", stats=STATS),
            done(3, "optim_step", 1),
            done(4, "forward_backward", 1, stats=STATS),
            branch,
        )
        run = await life.registry.get(RUN)
        assert (run.step, run.place.head, run.place.last, run.place.branch) == (0, 1, 4, 1)
        assert run.totals.datums == 0

    tell(tmp_path, story)


def test_controls_are_as_they_were(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        controls = Controls().pause("ada paused it")
        life.store(run_row(controls=controls.to_json()))
        run = await life.registry.get(RUN)
        assert run.controls == controls
        assert run.held_back
        assert not run.released.is_set()

    tell(tmp_path, story)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"ended": "it is over"}, "it is over"),
        ({"copied_from": "tinker://a/weights/b"}, "only holds a copy"),
    ],
)
def test_what_is_pending_of_an_ended_run_fails(
    tmp_path: Path, values: dict[str, Any], sentence: str
) -> None:
    async def story(life: Life) -> None:
        life.store(run_row(**values))
        await life.accept(7, optim_step())
        run = await life.registry.get(RUN)
        assert sentence in (run.ended or "")
        result = await life.futures.poll(f"{RUN} 7", 1.0)
        assert result is not None
        assert sentence in result.body.decode()

    tell(tmp_path, story)


def test_all_runs_with_something_pending_go_on(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        names = [f"s:train:{n}" for n in range(4)]
        life.store(*(run_row(name) for name in names))
        for name in names[:2]:
            await life.accept(0, ask("create_model"), name)
        await life.finish(await life.accept(0, ask("create_model"), names[2]))
        # A sample is of a sampling session, and is not gone on with; of a run that is unknown
        # nothing can be.
        await life.accept(0, ask("sample"), "s:sample:0")
        await life.accept(0, ask("create_model"), "nobody")
        await life.registry.resume()
        assert {run.id for run in life.registry} == set(names[:2])
        for run in life.registry:
            await life.settle(run)
        assert len(life.trainer.done) == 2

    tell(tmp_path, story)


def test_a_run_is_loaded_once(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        life.store(run_row())
        await life.accept(0, ask("create_model"))
        runs = await asyncio.gather(*(life.registry.get(RUN) for _ in range(10)))
        assert len(set(map(id, runs))) == 1
        await life.settle(runs[0])
        assert len(life.trainer.done) == 1
        with pytest.raises(UnknownRun, match="nobody"):
            await life.registry.get("nobody")
        assert life.registry.known("nobody") is None

    tell(tmp_path, story)


def test_a_run_that_is_looked_up_while_it_is_created_is_created_once(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        row = run_row()
        life.store(row)
        request = await life.accept(0, ask("create_model"))
        life.trainer.go_on.clear()
        looked_up = asyncio.create_task(life.registry.get(RUN))
        await asyncio.sleep(0)  # it asks the database
        life.registry.add(Run(row, LoraSpec(4, 1)), request)
        run = await looked_up
        life.trainer.go_on.set()
        await life.settle(run)
        await asyncio.sleep(0.05)
        assert len(life.trainer.done) == 1

    tell(tmp_path, story)


def test_a_closed_registry_leaves_what_it_is_asked_to_the_next_life(tmp_path: Path) -> None:
    async def story(life: Life) -> None:
        life.store(run_row())
        await life.finish(await life.accept(0, ask("create_model")))
        run = await life.registry.get(RUN)
        await life.registry.close()
        request = Request("late", RUN, 1, "optim_step", b"")
        assert await life.registry.submit(run, request) == "late"
        assert await life.futures.poll("late", 0.05) is None
        assert life.trainer.done == []

    tell(tmp_path, story)

    async def next_life(life: Life) -> None:
        run = await life.registry.get(RUN)
        await life.settle(run)
        assert [number for number, _, _ in life.trainer.done] == [1]

    tell(tmp_path, next_life)


def test_every_kind_of_request_is_gone_on_with(tmp_path: Path) -> None:
    service = make_service(tmp_path, FakeEngine())
    assert set(KINDS) == set(service.trainer._kinds)
