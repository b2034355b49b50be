"""Runs that are made of the steps of others, and the names of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from jupyter_tinker.server.checkpoints import UnknownCheckpoint
from jupyter_tinker.server.schema import SnapshotRow
from jupyter_tinker.wire import ops
from tests.server.one_service import RUN, ask, create_from, read
from tests.server.steered import Stage, story


def test_a_fork_begins_where_its_step_was(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        at_one = stage.state
        await stage.step(2)
        now = stage.state
        path = await stage.fork(1)
        assert path == f"tinker://{RUN}/weights/step=1+branch=0"
        assert await stage.fork(1, 0) == path
        assert stage.engine.count(ops.SaveCheckpoint) == 1
        assert stage.state == now  # beside what the run does
        made = read(await _done(stage, await create_from(stage.service, path, 1)))
        assert stage.engine.runs.states[made["model_id"]] == at_one
        assert set(stage.engine.runs.states) == {RUN, made["model_id"]}
        (event, _) = await stage.events("forked")
        assert (event.actor, event.step, event.data) == ("ada", 1, {"path": path})

    story(tell, tmp_path)


@pytest.mark.parametrize("dropped", [True, False], ids=["dropped", "damaged"])
def test_a_snapshot_that_goes_while_a_fork_is_made_of_it(tmp_path: Path, dropped: bool) -> None:
    async def tell(stage: Stage) -> None:
        for n in range(4):
            await stage.step(n)
        history, service = stage.service.history, stage.service
        for task in list(service.snapshots._writing.values()):
            await task
        newest = (await history.snapshots(RUN))[-1]
        assert newest.step > 0

        def lose(op: ops.Op) -> None:
            if isinstance(op, ops.RestoreRun) and op.file.endswith(newest.file):
                if dropped:
                    gone = delete(SnapshotRow).where(SnapshotRow.position == newest.position)
                    service._database.run(lambda db: db.execute(gone))
                service.snapshots.file(newest).unlink()

        stage.engine.before = lose
        path = await stage.fork(newest.step)
        made = read(await _done(stage, await create_from(service, path, 1)))
        assert stage.engine.runs.states[made["model_id"]].step == newest.step
        guards = [event.data for event in await stage.events("guard")]
        if dropped:
            assert guards == []
        else:
            (guard,) = guards
            assert (guard["rule"], guard["paused"]) == ("snapshot", False)
            assert "damaged" in guard["reason"]

    story(tell, tmp_path)


def test_a_checkpoint_and_its_event_are_stored_together(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        record = stage.service.events.record

        def fail(db: Any, run_id: Any, kind: Any, **data: Any) -> Any:
            if kind == "checkpoint_saved":
                raise RuntimeError("it cannot be told")
            return record(db, run_id, kind, **data)

        stage.service.events.record = fail  # type: ignore[method-assign]
        assert "it cannot be told" in (await stage.ask(ask("save_weights", path="a")))["error"]
        assert (await stage.service.checkpoints.list())[1] == 0
        stage.service.events.record = record  # type: ignore[method-assign]
        await stage.ask(ask("save_weights", path="a"))
        (event,) = await stage.events("checkpoint_saved")
        assert (event.step, event.data) == (1, {"path": f"tinker://{RUN}/weights/a"})

    story(tell, tmp_path)


async def _done(stage: Stage, request_id: str) -> Any:
    while (result := await stage.service.futures.poll(request_id, 1.0)) is None:
        pass
    return result


def test_a_step_can_be_loaded_without_asking_first(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        at_one = stage.state
        await stage.step(2)
        await stage.rewind(1)
        await stage.step(3)
        on_one = stage.state
        names = {"step=2": on_one, "step=2+branch=1": on_one, "step=1+branch=0": at_one}
        for number, (name, state) in enumerate(names.items(), 1):
            path = f"tinker://{RUN}/weights/{name}"
            made = read(await _done(stage, await create_from(stage.service, path, number)))
            assert stage.engine.runs.states[made["model_id"]] == state
        path = f"tinker://{RUN}/weights/step=2+branch=0"
        await stage.ask(ask("load_weights", path=path, optimizer=False))
        assert (stage.state.step, stage.state.moments) == (0, "")
        for name in ("step=9", "step=2+branch=7"):
            with pytest.raises(UnknownCheckpoint, match="There is no checkpoint"):
                await create_from(stage.service, f"tinker://{RUN}/weights/{name}", 9)
        with pytest.raises(UnknownCheckpoint):
            await create_from(stage.service, "tinker://nobody/weights/step=1", 9)

    story(tell, tmp_path)


def test_a_fork_of_a_step_number_that_came_twice_is_the_newer(tmp_path: Path) -> None:
    async def tell(stage: Stage) -> None:
        await stage.step(1)
        path = await stage.fork(1)
        await stage.ask(ask("load_weights", path=path, optimizer=False))  # counts from 0 again
        await stage.step(2)
        newer = stage.state
        assert newer.step == 1
        path = await stage.fork(1)
        made = read(await _done(stage, await create_from(stage.service, path, 1)))
        assert stage.engine.runs.states[made["model_id"]] == newer

    story(tell, tmp_path)


@pytest.mark.parametrize("name", ["step=3", "step=0+branch=1"])
def test_the_names_of_steps_are_not_for_clients(tmp_path: Path, name: str) -> None:
    async def tell(stage: Stage) -> None:
        refused = await stage.ask(ask("save_weights", path=name))
        assert refused["category"] == "user"
        assert "another name" in refused["error"]
        saved = await stage.ask(ask("save_weights_for_sampler", path=name))
        assert saved["path"].endswith(name)

    story(tell, tmp_path)
