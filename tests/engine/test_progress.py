"""What the engine says of long work: how many weights are loaded, and not too often."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from jupyter_tinker.engine import base_model, loading
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.progress import Sparing
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.progress import Progress

LORA = ops.LoraSpec(rank=2, seed=1)


def test_loading_counts_the_weights(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[Progress] = []
    engine = Engine()
    engine.report = told.append
    engine.handle(ops.CreateRun("run", "tiny", str(base), LORA))
    model = engine.bases[str(base)].model
    weights = sum("lora" not in name for name, _ in model.named_parameters())
    assert told[0] == Progress("loading tiny", 0, None, "tensors")
    assert told[1:] == [
        Progress("loading tiny", done, weights, "tensors") for done in range(1, weights + 1)
    ]
    told.clear()
    engine.handle(ops.CreateRun("other", "tiny", str(base), LORA))
    assert told == [], "it is loaded"
    assert capfd.readouterr() == ("", "")


def test_the_bar_of_transformers_is_its_own_again(base: Path) -> None:
    hook = lambda make, args, kwargs: make(*args, **kwargs)  # noqa: E731
    before = transformers_logging.set_tqdm_hook(hook)
    try:
        with (
            pytest.raises(KeyError),
            loading.counted_weights("loading", lambda progress: None),
        ):
            raise KeyError
        assert transformers_logging.set_tqdm_hook(before) is hook
    finally:
        transformers_logging.set_tqdm_hook(before)


def test_what_is_loaded_is_the_same(base: Path) -> None:
    engine = Engine()
    heard = base_model.load("tiny", base, engine.options, engine.placement, lambda progress: None)
    plain = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    state = plain.state_dict()
    for name, value in heard.model.state_dict().items():
        assert value.equal(state[name]), name


def test_other_bars_are_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with loading.counted_weights("loading", lambda progress: None):
        bar = transformers_logging.tqdm(range(3), desc="Something else", disable=True)
        assert list(bar) == [0, 1, 2]


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_bar_that_is_moved_by_hand_counts_too(by_hand: bool) -> None:
    told: list[int] = []
    with loading.counted_weights("loading", lambda progress: told.append(progress.done)):
        if by_hand:
            with transformers_logging.tqdm(total=3, desc="Loading weights") as bar:
                bar.set_postfix({"name": "x"})
                for _ in range(3):
                    bar.update(1)
        else:
            assert list(transformers_logging.tqdm("abc", desc="Loading weights")) == [*"abc"]
    assert told == [0, 1, 2, 3]


def test_a_release_without_the_hook_says_only_that_it_loads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(transformers_logging, "set_tqdm_hook")
    told: list[Progress] = []
    with loading.counted_weights("loading", told.append):
        pass
    assert told == [Progress("loading", unit="tensors")]


def test_at_most_five_a_second_and_what_is_new_at_once() -> None:
    now = 0.0
    told: list[tuple[str, int]] = []
    report = Sparing(lambda p: told.append((p.what, p.done)), lambda: now)
    for tick in range(64):
        now = tick / 64
        report(Progress("loading", tick, 64))
    assert told == [("loading", done) for done in (0, 13, 26, 39, 52)]
    report(Progress("merging", 0, 1))
    assert told[-1] == ("merging", 0)
