"""The parts of the benchmark; each adds its figures to the report."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench import device, ours
from tests.bench.bare import BareRun
from tests.bench.compute import compute
from tests.bench.data import batch, batches
from tests.bench.history import history
from tests.bench.load import load
from tests.bench.loops import Loop, child, loop
from tests.bench.noise import Noise
from tests.bench.panel import panel
from tests.bench.report import Report
from tests.bench.sampling import fairness, reinforcement, sampling
from tests.bench.scale import bodies, first_token, growth, long, together
from tests.servers import Server

_BLOCKS = {"4x128": (4, 2), "8x32..256": (3, 1)}  # how many blocks, and steps in each
_BY_DEFAULT = {"TinkerExtension": {"engine_at_start": None}}  # tests do without
_SIZES = ((4, 128, 9), (1, 16, 15), (64, 16, 5), (1, 2048, 3), (16, 512, 2))  # and steps
if device.CUDA:
    _BLOCKS = dict.fromkeys((*_BLOCKS, "16x1024"), (5, 10))
_GOALS = {"4x128": ">= 1.6", "8x32..256": ">= 3"}


def training(model: Path, report: Report) -> None:
    """Ours and the plain loop in turns."""
    with ours.server(model) as server:
        for unembed in (True, False):
            client = ours.Client(server, unembed=unembed)
            with ExitStack() as stack:
                plain = {
                    name: stack.enter_context(
                        loop("tests.bench.plain", model, ours.RANK, dtype, unembed=unembed)
                    )
                    for name, dtype in _plain_loops().items()
                }
                for batch in _BLOCKS:
                    _race(report, client, plain, model, batch, unembed=unembed)
            client.close()
        report.add("memory", "engine, peak", [ours.engine_peak_mib(server)], "MiB")


def _plain_loops() -> dict[str, str]:
    """By what they are called, the types they compute in: what ours does, and what is exact."""
    own = str(device.dtype()).removeprefix("torch.")
    loops = {"plain": own}
    if not device.CUDA and own != "float32":
        loops["plain in float32"] = "float32"
    return loops


def _race(
    report: Report,
    client: ours.Client,
    plain: dict[str, Loop],
    model: Path,
    batch: str,
    *,
    unembed: bool,
) -> None:
    sequences = batches(model)[batch]
    data, tokens = ours.datums(sequences), sum(map(len, sequences))
    client.steps(data, 1)
    for each in plain.values():
        each.steps(batch, 1)
    blocks, steps = _BLOCKS[batch]
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in plain}}
    noise: dict[str, list[float]] = {side: [] for side in seconds}
    for _ in range(blocks):
        for side in seconds:
            report.patience.wait()
            with Noise() as strangers:
                if side == "ours":
                    run = client.steps(data, steps)[0]
                else:
                    run = plain[side].steps(batch, steps)
            seconds[side] += run
            noise[side].append(strangers.cores)
    what = f"{batch}, {'all linear layers' if unembed else 'without unembed'}"
    for side, times in seconds.items():
        rates = [tokens / s for s in times]
        details = {"seconds": times, "others_per_block": noise[side]}
        others = statistics.mean(noise[side])
        report.add("training", f"{what}: {side}", rates, "tok/s", others=others, details=details)
    for name in plain:
        ratios = [
            statistics.median(seconds[name][i : i + steps])
            / statistics.median(seconds["ours"][i : i + steps])
            for i in range(0, blocks * steps, steps)
        ]
        goal = _GOALS.get(batch, "")
        report.add("training", f"{what}: ours / {name}", ratios, "x", goal=goal)


def overhead(model: Path, report: Report) -> None:
    """What is added to the engine's own seconds."""
    with ours.server(model) as server:
        client, bare = ours.Client(server), BareRun(server, model=ours.MODEL, rank=ours.RANK)
        for count, length, steps in _SIZES:
            sequences = batch(model, count, length)
            data = ours.datums(sequences)
            client.steps(data, 1)
            bare.steps(sequences, 1)
            report.patience.wait()
            with Noise() as noise:
                walls, _ = client.steps(data, steps)
                without = bare.steps(sequences, steps)
            what = f"{count}x{length} step, client's seconds minus the engine's"
            _add_overhead(report, what, walls, client.compute_seconds(steps), noise)
            own = ours.compute_seconds(server, bare.id, steps)
            _add_overhead(report, "  without the SDK", without, own, noise)
        with Noise() as noise:
            walls = [client.empty_step() for _ in range(30)][5:]
        own = client.compute_seconds(len(walls))
        empty = [1e3 * wall for wall in walls]
        report.add(
            "overhead", "empty optim_step, round trip", empty, "ms", goal="< 40", others=noise.cores
        )
        report.add("overhead", "  of which the engine", [1e3 * s for s in own], "ms")
        bare.close()
        client.close()


def _add_overhead(
    report: Report, what: str, walls: list[float], own: list[float], noise: Noise
) -> None:
    added = [1e3 * (wall - each) for wall, each in zip(walls, own, strict=True)]
    shares = [100 * (wall - each) / wall for wall, each in zip(walls, own, strict=True)]
    report.add("overhead", what, added, "ms", goal="< 8", others=noise.cores)
    report.add("overhead", "  of the step", shares, "%", goal="< 2")


def responsiveness(model: Path, report: Report) -> None:
    """How fast the notebook server answers while a model trains beside it."""
    data = ours.datums(batches(model)["4x128"])
    with ours.server(model) as server:
        client = ours.Client(server)
        client.steps(data, 1)
        _status(report, server, "idle", lambda: time.sleep(5))
        _status(report, server, "in training", lambda: client.steps(data, 10), goal="< 50")
        client.close()


def _status(
    report: Report, server: Server, when: str, meanwhile: Callable[[], object], *, goal: str = ""
) -> None:
    report.patience.wait()
    with child("tests.bench.poller", str(server.port), server.token) as poller:
        time.sleep(0.5)
        with Noise() as noise:
            meanwhile()
        output, _ = poller.communicate(timeout=60)
    times = sorted(1e3 * s for s in json.loads(output))
    what = f"/api/status, {when}"
    details = {"milliseconds": times}
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        value = times[min(len(times) - 1, int(share * len(times)))]
        limit = goal if name == "p99" else ""
        report.add("responsive", f"{what}, {name}", [value], "ms", goal=limit, others=noise.cores)
    report.figures[-1].details = details


def start(model: Path, report: Report) -> None:
    """From nothing to an answering server, and to the first loss."""
    data = ours.datums(batches(model)["4x128"])
    ready: list[float] = []
    first: list[float] = []
    report.patience.wait()
    with Noise() as noise:
        for number in range(5):
            began = time.perf_counter()
            with ours.server(model, config=_BY_DEFAULT) as server:
                ready.append(time.perf_counter() - began)
                if number < 2:
                    client = ours.Client(server)
                    client.steps(data, 1)
                    first.append(time.perf_counter() - began)
                    client.close()
    report.add("start", "jupyter tinker, until it answers", ready, "s", goal="< 2")
    what = "jupyter tinker, until the first step's loss"
    report.add("start", what, first, "s", goal="< 8", others=noise.cores)


def memory(model: Path, report: Report) -> None:
    """What the extension adds to an idle Jupyter server."""
    sizes = {}
    for enabled in (False, True):
        config = {"ServerApp": {"jpserver_extensions": {"jupyter_tinker": enabled}}}
        probe = "tinker/status" if enabled else "api/status"
        app = ("-m", "jupyter_server")
        with ours.server(model, app=app, config=config, probe=probe) as server:
            if enabled:
                server.fetch("tinker/api/v1/get_server_capabilities")
                server.fetch("tinker/runs")
            time.sleep(2)
            sizes[enabled] = ours.rss_mib(server)
    report.add("memory", "idle jupyter server without us", [sizes[False]], "MiB")
    report.add("memory", "idle jupyter server with us", [sizes[True]], "MiB")
    report.add("memory", "  difference", [sizes[True] - sizes[False]], "MiB", goal="< 100")


def events(model: Path, report: Report) -> None:
    """Steps of 50 runs to 20 watchers: a thousand a second, and as many as go."""
    for rate, count in ((1000, 5000), (100_000, 10_000)):
        extensions = {"jupyter_tinker": True, "tests.bench.event_source": True}
        config = {"ServerApp": {"jpserver_extensions": extensions}}
        app = ("-m", "jupyter_server")
        with ours.server(model, app=app, config=config) as server:
            report.patience.wait()
            with Noise() as noise:
                made, delays = _watched(server, rate, count)
        what = f"{rate} steps/s to 20 watchers" if rate < count else "steps to 20 watchers"
        made_per_second = [count / made["seconds"]]
        report.add("events", f"{what}, made", made_per_second, "steps/s", others=noise.cores)
        report.add("events", "  server's CPU for a step", [1e3 * made["cpu"] / count], "ms")
        for name, times, goal in (
            ("event loop held", made["held"], "< 50"),
            ("from a step to its watchers", delays, ""),
        ):
            for part, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
                value = 1e3 * times[min(len(times) - 1, int(share * len(times)))]
                report.add("events", f"  {name}, {part}", [value], "ms", goal=goal)


def _watched(server: Server, rate: int, count: int) -> tuple[dict[str, Any], list[float]]:
    """What the server tells of the steps it made, and the seconds until each arrived, sorted."""
    arguments = [str(server.port), server.token, "20", str(count)]
    with child("tests.bench.watchers", *arguments) as watchers:
        time.sleep(1)
        token = {"Authorization": f"token {server.token}"}
        query = f"rate={rate}&runs=50&count={count}"
        status, made = server.fetch(f"bench/steps?{query}", key="", headers=token)
        assert status == 200, made
        output, _ = watchers.communicate(timeout=120)
    got = json.loads(output)
    assert got["whole"], "steps were lost, doubled or out of order"
    return made, got["delays"]


PARTS = {
    "start": start,
    "load": load,
    "memory": memory,
    "overhead": overhead,
    "responsiveness": responsiveness,
    "events": events,
    "history": history,
    "panel": panel,
    "training": training,
    "compute": compute,
    "together": together,
    "long": long,
    "sampling": sampling,
    "fairness": fairness,
    "first-token": first_token,
    "reinforcement": reinforcement,
    "bodies": bodies,
    "growth": growth,
}
