"""What it costs that a run cannot be lost: journal and snapshots, and the time to be back."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from jupyter_tinker.notebook.client import Client as Watcher
from jupyter_tinker.notebook.follow import follow
from jupyter_tinker.server.backlog import Backlog
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.futures import Futures, Request, success
from jupyter_tinker.server.history import operation
from jupyter_tinker.server.journal import Journal
from jupyter_tinker.server.schema import RunRow, SessionRow
from tests.bench import ours
from tests.bench.data import batches
from tests.bench.noise import Noise
from tests.bench.report import Report

_ROUNDS, _STEPS = 3, 8
_HARDLY_EVER = {"TinkerExtension": {"snapshot_overhead": 0.001}}


def history(model: Path, report: Report) -> None:
    """Steps with snapshots and without, the journal alone, and an engine that is killed."""
    data = ours.datums(batches(model)["4x128"])
    with ours.server(model) as usual, ours.server(model, config=_HARDLY_EVER) as bare:
        clients = {"with": ours.Client(usual), "without": ours.Client(bare)}
        for client in clients.values():
            client.steps(data, 2)
        ratios: list[float] = []
        noises: list[float] = []
        for _ in range(_ROUNDS):
            seconds = {}
            for side, client in clients.items():
                report.patience.wait()
                with Noise() as noise:
                    seconds[side] = sum(client.steps(data, _STEPS)[0])
                noises.append(noise.cores)
            ratios.append(100 * (seconds["with"] / seconds["without"] - 1))
        what = f"4x128, {_STEPS} steps: time that snapshots add"
        others = statistics.mean(noises)
        report.add("history", what, ratios, "%", goal="< 3", others=others)
        step = seconds["without"] / _STEPS
        _journal(report, data_bytes=_body_bytes(data), step_seconds=step)
        _revival(report, usual, clients["with"], data, step)


def _body_bytes(data: list[ours.types.Datum]) -> int:
    """About what a batch takes on the wire: tokens, targets and weights."""
    return sum(16 * datum.model_input.length for datum in data)


def _journal(report: Report, *, data_bytes: int, step_seconds: float) -> None:
    """A forward_backward and an optim_step: accepted, done and stored."""
    milliseconds = asyncio.run(_journalled_steps(data_bytes, 200))
    report.add("history", "journal of a step", milliseconds, "ms")
    share = [100 * ms / 1e3 / step_seconds for ms in milliseconds]
    report.add("history", "  as part of a 4x128 step", share, "%", goal="< 3")


async def _journalled_steps(data_bytes: int, count: int) -> list[float]:
    with TemporaryDirectory(prefix="tinker-bench-") as folder:
        database = Database(default_url(Path(folder)))
        backlog = Backlog(database)
        futures = Futures(Journal(database, "bench"), backlog)
        run = await _some_run(database)
        milliseconds = []
        for step in range(count):
            started = time.perf_counter()
            for number, kind in enumerate(("forward_backward", "optim_step")):
                request = Request(
                    uuid.uuid4().hex, run, 2 * step + number, kind, os.urandom(data_bytes)
                )
                await futures.accept(request)
                futures.open(request)
                row = operation(
                    run, 2 * step + number + 1, "forward_backward", step, request_id=request.id
                )
                futures.complete(request, success({}), operation=row)
                await request.done
            milliseconds.append(1e3 * (time.perf_counter() - started))
        await backlog.close()
        await database.close()
    return milliseconds


async def _some_run(database: Database) -> str:
    session = SessionRow(id="s", created_at=0, owner="o", sdk_version="", tags=[])
    run = RunRow(
        id="s:train:0",
        session_id="s",
        owner="o",
        base_model="m",
        base_path="m",
        architecture="a",
        lora={},
        created_at=0,
        last_request_at=0,
    )
    await database.call(lambda db: db.add(session))
    await database.call(lambda db: db.add(run))
    return run.id


def _revival(
    report: Report,
    server: ours.Server,
    client: ours.Client,
    data: list[ours.types.Datum],
    step_seconds: float,
) -> None:
    """From the engine's death to the next step's result."""
    walls, replayed, beyond = [], [], []
    for _ in range(3):
        client.steps(data, 3)
        report.patience.wait()
        pid = server.engine_pid()
        assert pid is not None
        last = time.time()
        os.kill(pid, signal.SIGKILL)
        wall = client.steps(data, 1)[0][0]
        run = client.training.get_info().model_id
        revived = next(
            event
            for event in follow(Watcher(server.url, server.key), [run], after=0)
            if event["kind"] == "run_revived" and event["time"] > last
        )["data"]
        walls.append(wall)
        replayed.append(float(revived["replayed"]))
        beyond.append(wall - (revived["replayed"] + 1) * step_seconds)
    report.add("history", "engine killed: until the next step's result", walls, "s")
    report.add("history", "  steps replayed", replayed, "steps", goal="<= 10")
    report.add("history", "  without replay and the step: start and base model", beyond, "s")
