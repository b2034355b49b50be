"""Recipes of the unmodified cookbook, a few steps of each, on a real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cookbook.conftest import StartRecipe
from tests.cookbook.workdir import MODEL, read_rows
from tests.servers import Server

pytestmark = [pytest.mark.cookbook, pytest.mark.slow, pytest.mark.timeout(900)]

# The recipes' own default, stable_reinforce, is not published.
_LOSS = {"loss_fn": "importance_sampling"}


@pytest.fixture
def metrics(start_recipe: StartRecipe, server: Server, tmp_path: Path) -> Any:
    """Runs a recipe to its end; returns the rows of its metrics."""

    def run(name: str, **options: Any) -> list[dict[str, Any]]:
        log_path = tmp_path / "run"
        recipe = start_recipe(name, model_name=MODEL, log_path=log_path, **options)
        assert recipe.wait(600) == 0, f"{recipe.log}\n--- the server's log:\n{server.log}"
        return read_rows(log_path / "metrics.jsonl")

    return run


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    values = [float(row[name]) for row in rows if name in row]
    assert values, f"no {name} among {sorted({key for row in rows for key in row})}"
    return values
