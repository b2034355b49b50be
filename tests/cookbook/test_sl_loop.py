"""The cookbook's flat teaching loop trains, is interrupted, and resumes from its own checkpoint."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest

from tests.cookbook.conftest import Recipe, StartRecipe
from tests.cookbook.workdir import MODEL, read_rows
from tests.servers import Server

pytestmark = [pytest.mark.cookbook, pytest.mark.slow, pytest.mark.timeout(900)]


def losses(log_path: Path) -> dict[int, float]:
    rows = read_rows(log_path / "metrics.jsonl")
    # The recipe's own step, which a metric of the server's of that name would overwrite.
    return {int(float(str(row["step"]))): float(str(row["train_mean_nll"])) for row in rows}


def wait_until(reached: Callable[[], bool], recipe: Recipe, server: Server) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        ended = recipe.process.poll() is not None
        if ended or time.monotonic() > deadline:
            pytest.fail(f"{recipe.log}\n--- the server's log:\n{server.log}")
        time.sleep(0.05)


def test_sl_loop(start_recipe: StartRecipe, server: Server, tmp_path: Path) -> None:
    log_path = tmp_path / "run"
    options = {
        "model_name": MODEL,
        "batch_size": 4,
        "max_steps": 10,
        "save_every": 4,
        "learning_rate": 1e-3,
        "lora_rank": 8,
        "max_length": 128,
        "log_path": log_path,
    }

    first = start_recipe("sl_loop", **options)
    wait_until(lambda: 4 in losses(log_path), first, server)
    assert first.interrupt() != 0
    before = losses(log_path)
    saved = read_rows(log_path / "checkpoints.jsonl")
    assert [row["batch"] for row in saved] == [4]

    second = start_recipe("sl_loop", **options)
    assert second.wait(300) == 0, f"{second.log}\n--- the server's log:\n{server.log}"
    assert re.search(r"Resuming from batch 4\b", second.log)
    after = losses(log_path)

    assert sorted(after) == list(range(10))
    assert mean(after[step] for step in (7, 8, 9)) < 0.5 * mean(before[step] for step in (0, 1))
    names = [row["name"] for row in read_rows(log_path / "checkpoints.jsonl")]
    assert names == ["000004", "000004", "000008", "final"], "a resumed loop saves its start again"

    # Step 4 was taken twice: from the same weights, with the same moments of the optimizer.
    once, again = (
        row for row in read_rows(log_path / "metrics.jsonl") if int(float(str(row["step"]))) == 4
    )
    for name in ("train_mean_nll", "grad_norm", "update_norm"):
        assert again[name] == pytest.approx(once[name], rel=1e-5), name
