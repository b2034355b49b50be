"""The part of the benchmark that times the engine by itself, in turns with the plain loop."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tests.bench.data import batches
from tests.bench.loops import loop
from tests.bench.noise import Noise
from tests.bench.report import Report

_RANK = 32
_BLOCKS = 3
_STEPS = 2


def compute(model: Path, report: Report) -> None:
    """A step without server and messages: against the plain loop, and against the machine."""
    with (
        loop("tests.bench.alone", model, _RANK, unembed=True) as engine,
        loop("tests.bench.plain", model, _RANK, unembed=True) as plain,
    ):
        for batch in batches(model):
            engine.steps(batch, 2)
            plain.steps(batch, 1)
            answers: list[Any] = []
            ratios = []
            report.patience.wait()
            with Noise() as noise:
                for _ in range(_BLOCKS):
                    answers.append(engine.ask(batch, _STEPS))
                    times = plain.steps(batch, _STEPS)
                    own = statistics.median(answers[-1]["seconds"])
                    ratios.append(statistics.median(times) / own)
            work = engine.about["flops"][batch]
            tokens = sum(map(len, batches(model)[batch]))
            every = [s for answer in answers for s in answer["seconds"]]
            _add(report, f"{batch}: engine", [tokens / s for s in every], "tok/s", noise)
            _add(report, f"{batch}: engine / plain", ratios, "x", noise)
            shares = [
                100 * work / statistics.median(a["seconds"]) / a["best_rate"] for a in answers
            ]
            _add(report, f"{batch}: of the best rate of products", shares, "%", noise)
            rates = [a["best_rate"] / 1e9 for a in answers]
            _add(report, "  which is", rates, "GFLOP/s", noise)
            steps = [1e3 * s for answer in answers for s in answer["optimizer"]]
            _add(report, "  optimizer", steps, "ms", noise)
        report.add("compute", "engine alone, peak", [engine.peak_mib], "MiB")
        report.add("compute", "plain loop, peak", [plain.peak_mib], "MiB")


def _add(report: Report, what: str, values: list[float], unit: str, noise: Noise) -> None:
    report.add("compute", what, values, unit, others=noise.cores)
