"""What it costs that a run cannot be lost: journal and snapshots, and the time to be back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from jupyter_tinker.notebook.client import Client as Watcher
from jupyter_tinker.notebook.follow import follow
from jupyter_tinker.server.backlog import Backlog
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.engine_process import environment
from jupyter_tinker.server.extension import TinkerExtension
from jupyter_tinker.server.futures import Futures, Request, success
from jupyter_tinker.server.history import operation
from jupyter_tinker.server.journal import Journal
from jupyter_tinker.server.schema import RunRow, SessionRow
from tests.bench import ours
from tests.bench.data import batches
from tests.bench.noise import Noise
from tests.bench.report import Report

ROOT = Path(__file__).parents[2]
_OVERHEAD = 100 * TinkerExtension.snapshot_overhead.default_value  # percent
_PAIRS = 12


def history(model: Path, report: Report) -> None:
    """What a snapshot costs, the journal alone, and an engine that is killed."""
    data = ours.datums(batches(model)["4x128"])
    report.patience.wait()
    step = _snapshots(report, model)
    _journal(report, data_bytes=_body_bytes(data), step_seconds=step)
    with ours.server(model) as server:
        client = ours.Client(server)
        client.steps(data, 2)
        _revival(report, server, client, data, step)
        client.close()


def _snapshots(report: Report, model: Path) -> float:
    """Steps alone and beside a snapshot; returns the seconds of one alone."""
    arguments = [str(model), str(ours.RANK), str(_PAIRS)]
    with Noise() as noise:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.beside", *arguments],
            cwd=ROOT,
            env=environment(low_memory=False),  # as the server starts an engine
            capture_output=True,
            check=True,
            text=True,
        )
    seconds = json.loads(done.stdout.splitlines()[-1])
    alone = statistics.median(seconds["alone"])
    added = [b - a for a, b in zip(seconds["alone"], seconds["beside"], strict=True)]
    counted = statistics.median(seconds["counted"])
    report.add("history", "4x128 step alone", seconds["alone"], "s", others=noise.cores)
    report.add("history", "  added by a snapshot beside it", added, "s")
    report.add("history", "  counted as its cost", seconds["counted"], "s")
    every = counted / (_OVERHEAD / 100)
    report.add("history", "  so that there is one every", [every / alone], "steps", goal="<= 10")
    shares = [100 * seconds / every for seconds in added]
    report.add("history", "time that snapshots add", shares, "%", goal="< 3")
    return alone


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
