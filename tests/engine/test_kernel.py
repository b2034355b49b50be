"""The engine in its own process: replies that come later than those of operations sent later."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server.supervisor import EngineSupervisor
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.ops import OpError, SnapshotInfo

from .reference import request, samples

pytestmark = pytest.mark.e2e

LORA = ops.LoraSpec(rank=4, seed=7)
BACKWARD = ops.ForwardBackward("run", request(samples(0)))
STEP = ops.OptimStep("run", ops.AdamParams(learning_rate=1e-2))

# What a person in an attached notebook could do: let the disk wait for a file.
_SLOW_DISK = """
import pathlib, time
from jupyter_tinker.engine import snapshot
_write = snapshot.write
def _slowly(copy, file):
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
    return _write(copy, file)
snapshot.write = _slowly
"""


@asynccontextmanager
async def an_engine() -> AsyncIterator[EngineSupervisor]:
    supervisor = EngineSupervisor(device="cpu", num_threads=1)
    try:
        await supervisor.ensure_started()
        yield supervisor
    finally:
        await supervisor.stop()


@pytest.fixture
def with_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Callable[[EngineSupervisor], Awaitable[None]]], None]:
    """Runs a test's coroutine with an engine of its own."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))

    def run(story: Callable[[EngineSupervisor], Awaitable[None]]) -> None:
        async def told() -> None:
            async with an_engine() as supervisor:
                await asyncio.wait_for(story(supervisor), 120)

        asyncio.run(told())

    return run


async def ask(supervisor: EngineSupervisor, op: ops.Op) -> dict[str, Any]:
    return (await supervisor.request(op))[0]


@pytest.mark.parametrize("after", [0.0, 0.02, 0.2, 1.0])
def test_the_end_does_not_wait_for_a_start(
    after: float,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))

    async def told() -> None:
        supervisor = EngineSupervisor(device="cpu", num_threads=1)
        asking = asyncio.create_task(supervisor.ensure_started())
        await asyncio.sleep(after)
        await supervisor.stop()
        assert not supervisor.starting
        assert supervisor.generation <= 1
        assert supervisor.status is None
        asking.cancel()

    asyncio.run(asyncio.wait_for(told(), 60))
    # SDK clients of earlier tests in this process may still complain that their servers are gone.
    assert [r for r in caplog.records if not r.name.startswith("tinker.")] == []
    assert list(tmp_path.iterdir()) == []


def test_operations_go_on_while_a_snapshot_is_written(
    with_engine: Callable[..., None], base: Path, tmp_path: Path
) -> None:
    gate, file = tmp_path / "gate", tmp_path / "snapshots" / "1"

    async def story(engine: EngineSupervisor) -> None:
        await ask(engine, ops.CreateRun("run", "tiny", str(base), LORA))
        await ask(engine, BACKWARD)
        await ask(engine, STEP)
        engine._client._kernel.execute(_SLOW_DISK.format(gate=str(gate)))
        writing = asyncio.create_task(ask(engine, ops.SnapshotRun("run", str(file))))
        await asyncio.sleep(0)
        first, second = await ask(engine, BACKWARD), await ask(engine, STEP)
        assert second["step"] == 2
        assert not writing.done()
        assert not file.exists()
        gate.touch()
        info = SnapshotInfo(**await writing)
        assert info.step == 1
        assert info.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        # It holds the run as it was between the two steps.
        await ask(engine, ops.RestoreRun("run", "tiny", str(base), str(file), info.sha256))
        again = [await ask(engine, BACKWARD), await ask(engine, STEP)]
        assert again[0]["loss_sum"] == first["loss_sum"]
        assert [again[1][key] for key in ("step", "grad_norm", "update_norm")] == [
            second[key] for key in ("step", "grad_norm", "update_norm")
        ]

    with_engine(story)


def test_every_reply_finds_its_request(
    with_engine: Callable[..., None], base: Path, tmp_path: Path
) -> None:
    async def story(engine: EngineSupervisor) -> None:
        (tmp_path / "file").touch()
        await ask(engine, ops.CreateRun("run", "tiny", str(base), LORA))
        asked: list[ops.Op] = []
        for n in range(6):
            folder = "file" if n == 3 else "folder"
            asked += [BACKWARD, STEP, ops.SnapshotRun("run", str(tmp_path / folder / str(n)))]
        answers = await asyncio.gather(*(ask(engine, op) for op in asked), return_exceptions=True)
        steps, snapshots = answers[1::3], answers[2::3]
        assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
        refused = snapshots.pop(3)
        assert isinstance(refused, OpError)
        assert refused.category == "server"
        assert "could not be written" in refused.message
        assert [snapshot["step"] for snapshot in snapshots] == [1, 2, 3, 5, 6]
        with pytest.raises(OpError, match="no run 'other'"):
            await ask(engine, ops.SnapshotRun("other", str(tmp_path / "other")))

    with_engine(story)
