"""The history of a run: which operations made a state, however often the run was taken back."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jupyter_tinker.server.backlog import Backlog
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.history import History, HistoryGone, Kind, Place, operation
from jupyter_tinker.server.schema import BranchRow, OperationRow, PayloadRow, SnapshotRow

RUN = "s:train:0"


def branch(number: int, first: int, parent: int, step: int = 0) -> BranchRow:
    return BranchRow(
        run_id=RUN,
        number=number,
        first_position=first,
        parent_position=parent,
        step=step,
        created_at=1.0,
        actor="ada",
    )


def snapshot(position: int, step: int = 0) -> SnapshotRow:
    return SnapshotRow(
        run_id=RUN,
        position=position,
        step=step,
        file=f"{position}",
        size_bytes=1,
        sha256="",
        created_at=1.0,
    )


# A place in memory


def test_a_run_without_branches_goes_straight_on() -> None:
    place = Place()
    assert [place.advance() for _ in range(3)] == [1, 2, 3]
    assert (place.head, place.branch, place.end_of(0)) == (3, 0, 3)
    assert place.lineage(2) == [(1, 2)]


def positions(place: Place, position: int) -> list[int]:
    """The positions on the way to one, oldest first; none twice."""
    spans = place.lineage(position)
    found = [p for first, last in reversed(spans) for p in range(first, last + 1)]
    assert found == sorted(set(found))
    return found


class Lives(RuleBasedStateMachine):
    """A place against lists of what led to every position."""

    @initialize()
    def begin(self) -> None:
        self.place = Place()
        self.way: dict[int, list[int]] = {0: []}  # to each position that there ever was
        self.ends = [0]  # of each branch

    @rule()
    def advance(self) -> None:
        before = self.place.head
        position = self.place.advance()
        assert position not in self.way
        self.way[position] = [*self.way[before], position]
        self.ends[-1] = position

    @precondition(lambda self: self.place.last)
    @rule(data=st.data())
    def rewind(self, data: Any) -> None:
        parent = data.draw(st.integers(1, self.place.last), label="parent")
        number = len(self.place.branches) + 1
        self.place.branches.append(branch(number, self.place.last + 1, parent))
        self.place.head = parent
        self.ends.append(parent)

    @invariant()
    def every_state_is_found(self) -> None:
        for position, way in self.way.items():
            if position:
                assert positions(self.place, position) == way
        ends = [self.place.end_of(n) for n in range(len(self.ends))]
        assert ends == self.ends
        assert self.place.head == self.ends[-1]


def test_any_number_of_rewinds_leads_to_every_state() -> None:
    run_state_machine_as_test(Lives, settings=settings(max_examples=60, stateful_step_count=40))


# In the database


class Records:
    """A history in a database, and what is done in it as a trainer does."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(default_url(folder))
        self.history = History(self.database, Backlog(self.database))
        self.place = Place()
        self.step = 0

    def do(self, kind: Kind, step: int | None = None, **data: Any) -> int:
        """Returns the position. What is made of a payload has one."""
        self.step = self.step + (kind == "optim_step") if step is None else step
        position = self.place.advance()
        of_payload = kind in ("forward_backward", "load_weights")
        request_id = f"r{position}" if of_payload else None
        row = operation(RUN, position, kind, self.step, request_id=request_id, **data)

        def work(db: Any) -> None:
            db.add(row)
            if of_payload:
                db.add(PayloadRow(request_id=f"r{position}", run_id=RUN, body=b"x"))

        self.database.run(work)
        return position

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.do("forward_backward")
            self.do("optim_step")

    def keep(self, *rows: SnapshotRow) -> None:
        self.database.run(lambda db: db.add_all(rows))

    def rewind(self, position: int, step: int) -> None:
        row = branch(self.place.branch + 1, self.place.last + 1, position, step)
        self.database.run(lambda db: db.add(row))
        self.place.branches.append(row)
        self.place.head, self.step = position, step


@pytest.fixture
def records(tmp_path: Path) -> Any:
    made = Records(tmp_path)
    yield made
    asyncio.run(made.database.close())


def kinds(operations: list[OperationRow]) -> list[tuple[int, str]]:
    return [(row.position, row.kind) for row in operations]


def ask(work: Any) -> Any:
    return asyncio.run(work)


def test_a_place_is_read_back(records: Records) -> None:
    records.do("create_model")
    records.train(2)
    for position, step in ((3, 1), (3, 1), (1, 0)):
        stored = ask(records.history.place(RUN))
        assert (stored.head, stored.last) == (records.place.head, records.place.last)
        records.rewind(position, step)
        stored = ask(records.history.place(RUN))
        assert (stored.head, stored.last) == (position, 5)
        assert [row.number for row in stored.branches] == list(range(1, stored.branch + 1))
    records.train(1)
    assert ask(records.history.place(RUN)).head == records.place.head == 7
    assert ask(records.history.place("another")).head == 0


def test_a_plan_is_the_newest_snapshot_and_all_since(records: Records) -> None:
    records.do("create_model")
    records.train(3)
    plan = ask(records.history.plan(RUN, records.place, 5))
    assert plan.snapshot is None
    assert kinds(plan.operations) == [
        (1, "create_model"),
        (2, "forward_backward"),
        (3, "optim_step"),
        (4, "forward_backward"),
        (5, "optim_step"),
    ]
    assert plan.steps == 2
    records.keep(snapshot(1), snapshot(3), snapshot(6))
    for position, used, after in ((7, 6, [7]), (6, 6, []), (5, 3, [4, 5]), (2, 1, [2])):
        plan = ask(records.history.plan(RUN, records.place, position))
        assert plan.snapshot.position == used
        assert [row.position for row in plan.operations] == after


def test_a_plan_has_nothing_of_abandoned_branches(records: Records) -> None:
    records.do("create_model")
    records.train(3)  # 2 to 7
    records.keep(snapshot(5), snapshot(7))
    records.rewind(3, 1)
    records.train(1)  # 8, 9
    plan = ask(records.history.plan(RUN, records.place, 9))
    assert plan.snapshot is None
    assert [row.position for row in plan.operations] == [1, 2, 3, 8, 9]
    records.keep(snapshot(8))
    records.rewind(7, 3)  # what was abandoned first
    records.train(1)  # 10, 11
    plan = ask(records.history.plan(RUN, records.place, 11))
    assert plan.snapshot.position == 7
    assert [row.position for row in plan.operations] == [10, 11]
    plan = ask(records.history.plan(RUN, records.place, 9))
    assert plan.snapshot.position == 8
    assert [row.position for row in plan.operations] == [9]


def test_a_plan_without_its_payloads_says_what_is_kept(records: Records) -> None:
    records.do("create_model")
    records.train(2)
    records.database.run(lambda db: db.delete(db.get_one(PayloadRow, "r2")))
    with pytest.raises(HistoryGone, match=r"history_bytes.*Nothing of it is left"):
        ask(records.history.plan(RUN, records.place, 5))
    records.keep(snapshot(3, step=1), snapshot(5, step=2))
    assert ask(records.history.plan(RUN, records.place, 4)).snapshot.position == 3
    with pytest.raises(HistoryGone, match=r"Snapshots are kept of step 1, 2\."):
        ask(records.history.plan(RUN, records.place, 2))
    with pytest.raises(HistoryGone, match="dropped"):
        ask(records.history.payload("r2"))
    assert ask(records.history.payload("r4")) == b"x"


def test_payloads_are_counted_however_many_there_are(records: Records) -> None:
    records.do("create_model")
    for _ in range(1203):
        records.do("forward_backward")
    assert len(ask(records.history.plan(RUN, records.place, 1204)).operations) == 1204
    records.database.run(lambda db: db.delete(db.get_one(PayloadRow, "r1204")))
    with pytest.raises(HistoryGone):
        ask(records.history.plan(RUN, records.place, 1204))


def test_a_step_of_a_branch(records: Records) -> None:
    history, place = records.history, records.place
    records.do("create_model")
    records.train(3)  # 2 to 7
    records.rewind(3, 1)
    records.train(1)  # 8, 9

    def position(step: int, number: int) -> int:
        found: int = ask(history.state_of_step(RUN, place, step, number))
        return found

    assert [position(n, 0) for n in range(4)] == [1, 3, 5, 7]
    assert [position(n, 1) for n in range(3)] == [1, 3, 9]
    for step, number in ((3, 1), (4, 0)):
        with pytest.raises(HistoryGone, match=f"no step {step}"):
            position(step, number)
    for number in (2, -1):
        with pytest.raises(HistoryGone, match="no branch"):
            position(1, number)


def test_loaded_weights_begin_other_step_numbers(records: Records) -> None:
    history, place = records.history, records.place
    records.do("create_model")
    records.train(3)  # 2 to 7
    records.do("load_weights", step=0)  # 8: without the optimizer
    records.train(2)  # 9 to 12

    def position(step: int) -> int:
        return int(ask(history.state_of_step(RUN, place, step, 0)))

    assert [position(n) for n in range(4)] == [8, 10, 12, 7]
    assert ask(history.step_at(RUN, 7)) == 3
    assert ask(history.step_at(RUN, 8)) == 0


def test_dropped_gradients_are_no_state_of_a_step(records: Records) -> None:
    records.do("create_model")
    records.train(1)
    records.do("forward_backward")
    records.do("zero_grad")
    assert ask(records.history.state_of_step(RUN, records.place, 1, 0)) == 3


def test_what_is_accumulated_is_what_came_since_the_last_boundary(records: Records) -> None:
    def since() -> list[tuple[int, str]]:
        return kinds(ask(records.history.since_boundary(RUN, records.place)))

    assert since() == []
    records.do("create_model")
    records.do("forward_backward")
    records.do("spoiled", reason="x", skips=True)
    assert since() == [(2, "forward_backward"), (3, "spoiled")]
    records.do("zero_grad")
    assert since() == []
    records.train(1)
    records.do("forward_backward")
    assert since() == [(7, "forward_backward")]
    records.rewind(6, 1)
    assert since() == []
    records.do("spoiled", reason="y", skips=True)
    assert since() == [(8, "spoiled")]
    for kind in ("load_weights", "optim_step", "create_via_load"):
        records.do(kind)
        assert since() == []


def test_histories_are_each_runs_own() -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder))
        records.do("create_model")
        other = [operation("other", n, "forward_backward", 0) for n in (1, 2, 3)]
        records.database.run(lambda db: db.add_all(other))
        assert ask(records.history.place(RUN)).last == 1
        plan = ask(records.history.plan(RUN, records.place, 1))
        assert kinds(plan.operations) == [(1, "create_model")]
        asyncio.run(records.database.close())
