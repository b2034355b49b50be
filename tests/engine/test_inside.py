"""What `engine` shows in a notebook on its kernel: what is there, in copies, leaving nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.inside import EngineView
from jupyter_tinker.wire import ops

from . import inside
from .inside import LORA, TOKENS, backward, layers_of, state, step, view

trained = inside.trained

TENSORS = [
    "A", "B", "grad_A", "grad_B", "exp_avg_A", "exp_avg_B", "exp_avg_sq_A", "exp_avg_sq_B",
    "weight", "delta",
]  # fmt: skip


def test_every_tensor_is_what_the_run_has(trained: Engine) -> None:
    run = trained.runs["run"]
    shown = view(trained).runs["run"]
    assert (shown.step, shown.base_model, shown.has_gradients) == (1, "tiny", True)
    assert shown.parameters == run.adapter.weights.numel()
    assert list(shown.adapter) == [target.path for target in run.adapter.targets]
    flats = {
        "": run.adapter.weights,
        "grad_": run.adapter.gradients,
        "exp_avg_": run.optimizer.mean,
        "exp_avg_sq_": run.optimizer.square,
    }
    for prefix, flat in flats.items():
        told = [
            getattr(layer, f"{prefix}{side}").flatten()
            for layer in shown.adapter.values()
            for side in "AB"
        ]
        assert torch.equal(torch.cat(told), flat)
        assert flat.any()
    run.base.wrappers.activate(run.adapter)
    parameters = dict(run.base.model.named_parameters())
    for path, layer in shown.adapter.items():
        for side in "AB":
            named = parameters[f"{path}.lora_{side}.{run.adapter.name}.weight"]
            assert torch.equal(getattr(layer, side), named)
            assert torch.equal(getattr(layer, f"grad_{side}"), named.grad)
        weight = parameters.get(f"{path}.base_layer.weight", parameters.get(f"{path}.weight"))
        assert torch.equal(layer.weight, weight)


def test_norms_are_those_of_the_matrices(trained: Engine) -> None:
    for layer in layers_of(trained):
        assert layer.scale == LORA.alpha / LORA.rank
        assert torch.equal(layer.delta, layer.scale * (layer.B @ layer.A))
        assert layer.delta_norm == pytest.approx(float(layer.delta.norm()), rel=1e-5)
        assert layer.delta_norm > 0
        assert layer.weight_norm == pytest.approx(float(layer.weight.norm()), rel=1e-5)


def test_delta_norms_are_a_map_of_layers_and_modules(trained: Engine) -> None:
    shown = view(trained)
    figure = shown.delta_norms("run")
    (grid,) = figure.data
    assert list(grid.x) == ["0", "1", "output"]
    assert "self_attn.q_proj" in grid.y
    assert "lm_head" in grid.y
    layer = shown.runs["run"].adapter["model.layers.1.mlp.up_proj"]
    place = list(grid.y).index("mlp.up_proj"), list(grid.x).index("1")
    assert grid.z[place[0]][place[1]] == layer.delta_norm
    assert grid.z[list(grid.y).index("lm_head")][0] is None
    relative = shown.delta_norms(shown.runs["run"], relative=True).data[0]
    assert relative.z[place[0]][place[1]] == pytest.approx(layer.delta_norm / layer.weight_norm)
    assert "other" in shown.delta_norms().layout.title.text


def test_nothing_that_is_done_to_what_is_shown_reaches_a_run(base: Path) -> None:
    alone, watched = Engine(), Engine()
    for engine in (alone, watched):
        engine.handle(ops.CreateRun("run", "tiny", str(base), LORA))
    for number in range(4):
        for engine in (alone, watched):
            step(engine, seed=number)
            backward(engine, "run", number + 10)
        shown = view(watched)
        for layer in shown.runs["run"].adapter.values():
            for name in TENSORS:
                tensor = getattr(layer, name)
                assert tensor.device.type == "cpu"
                assert not tensor.requires_grad
                tensor.fill_(float("nan"))
        for run in ("run", None):
            trace = shown.trace(TOKENS, run)
            trace.hidden.zero_()
            assert trace.attention is not None
            trace.attention.zero_()
        shown.delta_norms("run", relative=True)
        repr(shown), repr(shown.memory()), repr(shown.runs["run"].adapter)
        expected = state(alone.runs["run"])
        got = state(watched.runs["run"])
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize(
    ("look", "sentence"),
    [
        (lambda e: e.runs["nobody"], "holds no run 'nobody'"),
        (lambda e: e.runs[""], "2 runs begin with"),
        (lambda e: e.runs["run"].adapter["nothing"], "trains no layer 'nothing'"),
        (lambda e: e.runs["run"].adapter["q_proj"], "2 layers end in 'q_proj'"),
        (lambda e: e.trace(TOKENS, "run", 2), "layers 0 to 1"),
        (lambda e: e.trace([], "run"), "has 0 tokens"),
        (lambda e: e.trace([1] * 65, "run"), "takes 1 to 64"),
        (lambda e: e.trace([256], "run"), "from 0 to 255"),
        (lambda e: e.trace("text", "run"), "no tokenizer.json"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence(
    trained: Engine, look: Callable[[EngineView], object], sentence: str
) -> None:
    with pytest.raises((ValueError, LookupError), match=sentence):
        look(view(trained))


def test_an_engine_without_runs_says_so(engine: Engine) -> None:
    shown = view(engine)
    assert "holds no runs" in repr(shown)
    with pytest.raises(LookupError, match="holds no run"):
        _ = shown.runs.latest
    with pytest.raises(LookupError, match="no base model is loaded"):
        shown.trace(TOKENS)


def test_runs_and_layers_are_found_by_unique_parts(trained: Engine) -> None:
    shown = view(trained)
    assert shown.runs["o"].id == "other" == shown.runs.latest.id
    layer = shown.runs["run"].adapter["layers.0.self_attn.q_proj"]
    assert layer.path == "model.layers.0.self_attn.q_proj"
    assert "Run run: step 1, rank 4 on tiny" in repr(shown.runs)
    trained.runs["run@3:x"] = trained.runs["run"]  # made beside a run, for a moment
    assert list(shown.runs) == ["run", "other"]


def test_a_run_that_left_the_engine_is_told_of(trained: Engine) -> None:
    shown = view(trained).runs["run"]
    trained.handle(ops.UnloadRun("run"))
    with pytest.raises(LookupError, match="not in the engine now"):
        _ = shown.step


def test_a_thread_may_not_look(trained: Engine) -> None:
    shown, failures = view(trained), []

    def look() -> None:
        for act in (lambda: shown.trace(TOKENS), lambda: shown.runs["run"].step, shown.memory):
            try:
                act()
            except RuntimeError as error:
                failures.append(str(error))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert len(failures) == 3
    assert "not from a thread" in failures[0]


def test_memory_is_that_of_the_tensors(trained: Engine) -> None:
    told = view(trained).memory()
    adapter = trained.runs["run"].adapter
    assert told.runs == {"run": 4 * adapter.weights.nbytes, "other": 4 * adapter.weights.nbytes}
    model = trained.runs["run"].base.model
    plain = [p for name, p in model.named_parameters() if "lora_" not in name]
    assert told.base_models["tiny"] >= sum(p.nbytes for p in plain)
    assert told.used > 0
    assert "run other" in repr(told)
