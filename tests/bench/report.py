"""Figures: one table on the terminal, the same as JSON. Knows nothing of how they were measured."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.noise import Patience

HEAD = ("PART", "WHAT", "FIGURE", "RANGE", "GOAL", "OTHERS")


@dataclass
class Figure:
    """One line of the table. `others` is the CPU that strangers used meanwhile, in cores."""

    part: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    goal: str = ""
    others: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        spread = "" if self.low is None or self.high is None else f"{_n(self.low)}..{_n(self.high)}"
        others = "" if self.others is None else f"{self.others:.2f}"
        return self.part, self.what, f"{_n(self.value)} {self.unit}", spread, self.goal, others


@dataclass
class Report:
    """All figures of one run of the benchmark, printed as they come in."""

    figures: list[Figure] = field(default_factory=list)
    patience: Patience = field(default_factory=Patience)

    def add(self, part: str, what: str, values: Sequence[float], unit: str, **more: Any) -> Figure:
        """The median of `values`, with their range."""
        figure = Figure(part, what, statistics.median(values), unit, **more)
        if len(values) > 1:
            figure.low, figure.high = min(values), max(values)
        self.figures.append(figure)
        print("  ", "  ".join(cell for cell in figure.cells()[1:] if cell), flush=True)
        return figure

    def table(self) -> str:
        rows = [HEAD, *(figure.cells() for figure in self.figures)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def write(self, path: Path, machine: dict[str, Any]) -> None:
        content = {"machine": machine, "figures": [asdict(figure) for figure in self.figures]}
        path.write_text(json.dumps(content, indent=1))


def machine() -> dict[str, Any]:
    """The hardware and the versions that the figures depend on."""
    import psutil
    import torch

    packages = ("jupyter_tinker", "torch", "transformers", "peft", "tinker", "jupyter_server")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _n(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
