"""Recipes of the unmodified cookbook, a few steps of each, on a real model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.cookbook.conftest import StartRecipe
from tests.cookbook.workdir import MODEL, TEACHER, read_rows
from tests.servers import Server

pytestmark = [pytest.mark.cookbook, pytest.mark.slow, pytest.mark.timeout(900)]

Rows = list[dict[str, Any]]
RunRecipe = Callable[..., Rows]

# The recipes' own default, stable_reinforce, is not published.
_LOSS = {"loss_fn": "importance_sampling"}


@pytest.fixture
def run_recipe(start_recipe: StartRecipe, server: Server, tmp_path: Path) -> RunRecipe:
    """Runs a recipe to its end; returns the rows of its metrics."""

    def run(name: str, **options: Any) -> Rows:
        log_path = tmp_path / "run"
        recipe = start_recipe(name, model_name=MODEL, log_path=log_path, **options)
        assert recipe.wait(600) == 0, f"{recipe.log}\n--- the server's log:\n{server.log}"
        return read_rows(log_path / "metrics.jsonl")

    return run


def column(rows: Rows, name: str) -> list[float]:
    values = [float(row[name]) for row in rows if name in row]
    assert values, f"no {name} among {sorted({key for row in rows for key in row})}"
    return values


def test_rl_learns_arithmetic(run_recipe: RunRecipe) -> None:
    rows = run_recipe(
        "math_rl.train",
        env="arithmetic",
        groups_per_batch=8,
        group_size=8,
        max_tokens=4,
        learning_rate=5e-4,
        max_steps=8,
        eval_every=0,
        save_every=0,
        **_LOSS,
    )
    correct = column(rows, "env/all/correct")
    assert len(correct) == 8
    assert mean(correct[3:]) > correct[0] + 0.05, correct
    # What the sampler says of its tokens is what training computes for the same weights.
    assert max(map(abs, column(rows, "optim/kl_sample_train_v2"))) < 1e-5


def test_rl_loop(run_recipe: RunRecipe, tmp_path: Path) -> None:
    rows = run_recipe(
        "rl_loop", batch_size=8, group_size=4, max_steps=2, max_tokens=24, lora_rank=8, **_LOSS
    )
    rewards = column(rows, "reward/total")
    assert len(rewards) == 2
    assert all(0 <= reward <= 1 for reward in rewards)
    names = [row["name"] for row in read_rows(tmp_path / "run" / "checkpoints.jsonl")]
    assert names[-1] == "final"


def test_dpo_tells_chosen_from_rejected(run_recipe: RunRecipe) -> None:
    rows = run_recipe(
        "preference.dpo.train",
        dataset="hhh",
        batch_size=8,
        max_steps=3,
        renderer_name="role_colon",
        learning_rate=1e-4,
    )
    losses = column(rows, "dpo_loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3), "at first policy and reference are one"
    assert losses[-1] < losses[0] - 0.05
    assert column(rows, "margin")[-1] > 0.1


def test_distillation_from_a_teacher(run_recipe: RunRecipe) -> None:
    rows = run_recipe(
        "distillation.on_policy_distillation",
        teacher_model=TEACHER,
        renderer_name="role_colon",
        groups_per_batch=4,
        group_size=2,
        max_steps=2,
        max_tokens=24,
        lora_rank=8,
    )
    divergences = column(rows, "teacher_kl")
    assert len(divergences) == 2
    assert abs(divergences[0]) < 1e-4, "at first the student is its teacher"


def test_games_of_several_turns(run_recipe: RunRecipe) -> None:
    rows = run_recipe(
        "multiplayer_rl.guess_number.train",
        batch_size=2,
        group_size=2,
        max_steps=1,
        max_tokens=8,
        eval_every=0,
        renderer_name="role_colon",
    )
    assert column(rows, "env/all/turns_per_episode")[0] > 1


def test_sl_basic(run_recipe: RunRecipe) -> None:
    rows = run_recipe("sl_basic", max_steps=2, save_every=0, learning_rate=1e-3)
    losses = column(rows, "train_mean_nll")
    assert losses[1] < losses[0] - 0.5, "the same 128 chats again"
