"""What a container grants is what the engine reckons with."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from jupyter_tinker.engine import container, memory, placement
from jupyter_tinker.wire.ops import EngineOptions


@pytest.mark.parametrize(
    ("file", "text", "granted"),
    [
        ("memory.max", "4096\n", 4096),
        ("memory/memory.limit_in_bytes", "8192\n", 8192),
        ("memory.max", "max\n", None),
        ("memory.max", f"{2**62}\n", None),
        ("cpu.max", "max 100000\n", None),
    ],
)
def test_a_container_has_the_memory_that_it_is_granted(
    file: str, text: str, granted: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    monkeypatch.setattr(container, "_CGROUP", tmp_path)
    machine = psutil.virtual_memory().total
    assert memory.total(torch.device("cpu")) == (granted or machine)


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_threads_are_no_more_than_a_container_can_run(
    files: dict[str, str],
    granted: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(container, "_CGROUP", tmp_path)
    assert container.cpus() == granted
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert placement.num_threads(EngineOptions()) == granted
    assert placement.num_threads(EngineOptions(num_threads=7)) == 7
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert placement.num_threads(EngineOptions()) is None
