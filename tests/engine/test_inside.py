"""What `engine` shows in a notebook on its kernel: what is there, in copies, leaving nothing."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules import module as modules
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from jupyter_tinker.engine import snapshot
from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.fast.lora import Lora
from jupyter_tinker.engine.inside import EngineView
from jupyter_tinker.engine.inside_run import LayerView
from jupyter_tinker.engine.settings import Apart
from jupyter_tinker.engine.train import Run
from jupyter_tinker.engine.wrappers import plain
from jupyter_tinker.wire import ops

from .reference import request, samples

KINDS = ["untied", "tied", "qwen2", "gemma2", "cohere", "gpt_neox"]
TOKENS = [3, 17, 99, 4, 200, 17, 42]
LORA = ops.LoraSpec(rank=4, seed=7)
TENSORS = [
    "A", "B", "grad_A", "grad_B", "exp_avg_A", "exp_avg_B", "exp_avg_sq_A", "exp_avg_sq_B",
    "weight", "delta",
]  # fmt: skip


def backward(engine: Engine, run: str, seed: int) -> None:
    engine.handle(ops.ForwardBackward(run, request(samples(seed))))


def step(engine: Engine, run: str = "run", seed: int = 0) -> None:
    backward(engine, run, seed)
    engine.handle(ops.OptimStep(run, ops.AdamParams(learning_rate=1e-2, weight_decay=0.1)))


@pytest.fixture
def trained(engine: Engine, base: Path) -> Engine:
    """An engine with two runs, one of them in the midst of a step."""
    for name in ("run", "other"):
        engine.handle(ops.CreateRun(name, "tiny", str(base), LORA))
        step(engine, name)
    backward(engine, "run", 1)
    return engine


def view(engine: Engine) -> EngineView:
    return EngineView(engine)


def state(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in snapshot.copy(run).tensors.items()}


def layers_of(engine: Engine, name: str = "run") -> Iterator[LayerView]:
    return iter(view(engine).runs[name].adapter.values())


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


def trained_hidden(run: Run, kind: str, layer: int) -> torch.Tensor:
    """What a layer hands on in training, where the layers are our own or those of transformers."""
    if (decoder := run.base.decoder) is not None:
        cut = replace(decoder, layers=decoder.layers[: layer + 1])
        stream = torch.tensor(TOKENS)
        return cut.forward(stream, [len(TOKENS)], Lora.of(run.adapter), keep=False)._last
    kept: list[torch.Tensor] = []
    path = f"{'gpt_neox' if kind == 'gpt_neox' else 'model'}.layers.{layer}"
    hook = run.base.model.get_submodule(path).register_forward_hook(
        lambda _, __, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    run.base.wrappers.activate(run.adapter)
    with torch.no_grad():
        run.base.hidden_states(torch.tensor([TOKENS]))
    hook.remove()
    return kept[0][0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_has_the_hidden_states_of_training(
    kind: str, models: Callable[[str], Path], engine: Engine
) -> None:
    engine.handle(ops.CreateRun("run", kind, str(models(kind)), LORA))
    step(engine)
    engine.handle(ops.CreateRun("later", kind, str(models(kind)), LORA))
    step(engine, "later", seed=3)
    run = engine.runs["run"]
    assert (run.base.decoder is not None) == (kind in ("untied", "tied", "qwen2"))
    rounding = 0.0 if run.base.decoder is None else 1e-5
    for layer in (0, 1):
        got = view(engine).trace(TOKENS, "run", layer).hidden
        expected = trained_hidden(run, kind, layer)
        torch.testing.assert_close(got, expected, rtol=rounding, atol=rounding)
        later = view(engine).trace(TOKENS, "later", layer).hidden
        assert (got - later).abs().max() > 100 * rounding
    assert torch.equal(view(engine).trace(TOKENS, "run").hidden, got)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_run_it_is_the_base_models(
    kind: str, models: Callable[[str], Path], engine: Engine
) -> None:
    engine.handle(ops.CreateRun("run", kind, str(models(kind)), LORA))
    step(engine)
    plain = AutoModelForCausalLM.from_pretrained(models(kind), attn_implementation="eager")
    with torch.no_grad():
        expected = plain(torch.tensor([TOKENS]), output_hidden_states=True, output_attentions=True)
    first, last = (view(engine).trace(TOKENS, layer=layer) for layer in (0, -1))
    assert (first.layer, last.layer) == (0, 1)
    torch.testing.assert_close(first.hidden, expected.hidden_states[1][0], rtol=1e-4, atol=1e-4)
    for trace, shares in zip((first, last), expected.attentions, strict=True):
        assert trace.attention is not None
        torch.testing.assert_close(trace.attention, shares[0], rtol=1e-4, atol=1e-5)
        assert not trace.attention.triu(1).any()


def test_attention_is_shown_as_a_figure(trained: Engine) -> None:
    trace = view(trained).trace(TOKENS, "run", 0)
    assert trace.attention is not None
    np.testing.assert_allclose(trace.figure().data[0].z, trace.attention.mean(0), rtol=1e-6)
    np.testing.assert_allclose(trace.figure(2).data[0].z, trace.attention[2], rtol=1e-6)
    without = view(trained).trace(TOKENS, "run", 0, attention=False)
    assert without.attention is None
    with pytest.raises(ValueError, match="attention=False"):
        without.figure()


def test_text_is_read_with_the_models_tokenizer(tiny_model_dir: Path, engine: Engine) -> None:
    engine.handle(ops.CreateRun("run", "tiny", str(tiny_model_dir), LORA))
    trace = view(engine).trace("This software is provided", "run")
    assert "".join(trace.texts) == "This software is provided"
    assert torch.equal(trace.hidden, view(engine).trace(trace.tokens, "run").hidden)


class Stop(BaseException):
    """As Ctrl-C would: at any time."""


def test_an_interrupted_trace_leaves_nothing_behind(trained: Engine, base: Path) -> None:
    shown, run = view(trained), trained.runs["run"]
    untouched = Engine()
    for name in ("run", "other"):
        untouched.handle(ops.CreateRun(name, "tiny", str(base), LORA))
        step(untouched, name)
    backward(untouched, "run", 1)
    inner = plain(run.base.model.get_submodule("model.layers.1.mlp.down_proj"))
    before = {name: dict(m.__dict__) for name, m in run.base.model.named_modules()}
    for passes in (0, 1):  # of hidden states, and of attention
        seen = []

        def stop(*_: object, passes: int = passes, seen: list[int] = seen) -> None:
            seen.append(1)
            if len(seen) > passes:
                raise Stop

        hook = inner.register_forward_hook(stop)
        with pytest.raises(Stop):
            shown.trace(TOKENS, "other")
        hook.remove()
        after = {name: set(m.__dict__) for name, m in run.base.model.named_modules()}
        assert after == {name: set(kept) for name, kept in before.items()}
        assert run.base.model.config._attn_implementation == "sdpa"
    step(trained, seed=5)
    step(untouched, seed=5)
    expected, got = state(untouched.runs["run"]), state(run)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_what_a_trace_left_half_undone_is_undone_later(trained: Engine) -> None:
    shown = view(trained)
    module = trained.runs["run"].base.model.get_submodule("model.layers.0.self_attn.q_proj")
    shown._tracer._replace(module, lambda x: x)
    assert "forward" in module.__dict__
    shown._tracer.tidy()
    assert "forward" not in module.__dict__
    shown._tracer.tidy()


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


# What a cell can switch

SWITCHES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "default dtype": (
        lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype
    ),
    "default device": (lambda: torch.set_default_device("meta"), torch.get_default_device),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"), torch.get_float32_matmul_precision
    ),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True), torch.are_deterministic_algorithms_enabled
    ),
    "anomalies": (
        lambda: torch.set_anomaly_enabled(True, True), torch.is_anomaly_enabled
    ),
    "autocast": (
        lambda: torch.set_autocast_enabled("cpu", True), lambda: torch.is_autocast_enabled("cpu")
    ),
    "flash attention": (
        lambda: torch.backends.cuda.enable_flash_sdp(False), torch.backends.cuda.flash_sdp_enabled
    ),
    "oneDNN": (
        lambda: setattr(torch.backends.mkldnn, "enabled", False),
        lambda: torch.backends.mkldnn.enabled,
    ),
    "CUDA device": (lambda: torch.cuda.set_device(1), lambda: torch.cuda.current_device()),
    "matrix library": (
        lambda: torch.backends.cuda.preferred_blas_library("cublaslt"),
        lambda: torch.backends.cuda.preferred_blas_library(),
    ),
    "hooks before all modules": (
        lambda: modules.register_module_forward_pre_hook(print),
        lambda: list(modules._global_forward_pre_hooks.values()),
    ),
    "hooks behind all modules": (
        lambda: modules.register_module_forward_hook(print, always_call=True),
        lambda: [list(modules._global_forward_hooks.values()),
                 list(modules._global_forward_hooks_always_called.values())],
    ),
    "hooks of all gradients": (
        lambda: modules.register_module_full_backward_hook(print),
        lambda: [list(modules._global_backward_hooks.values()),
                 modules._global_is_full_backward_hook],
    ),
    "hooks of all parameters": (
        lambda: modules.register_module_parameter_registration_hook(print),
        lambda: list(modules._global_parameter_registration_hooks.values()),
    ),
    "numpy errors": (lambda: np.seterr(all="raise"), lambda: tuple(np.geterr().items())),
    "warnings": (lambda: warnings.simplefilter("error"), lambda: list(warnings.filters)),
    "folder": (lambda: os.chdir("/"), os.getcwd),
}  # fmt: skip


class Cuda:
    """What can be switched of CUDA, where there need be none."""

    def __init__(self) -> None:
        self.device, self.library = 0, "cublas"

    def set_device(self, device: int) -> None:
        self.device = device

    def preferred_blas_library(self, library: str | None = None) -> str:
        self.library = library or self.library
        return self.library


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Apart:
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: cuda.device)
    monkeypatch.setattr(torch.cuda, "set_device", cuda.set_device)
    monkeypatch.setattr(torch.backends.cuda, "preferred_blas_library", cuda.preferred_blas_library)
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)  # is set back
    return Apart()


@pytest.mark.parametrize("name", list(SWITCHES))
@pytest.mark.filterwarnings("ignore")
def test_what_a_cell_switches_is_the_cells_own(name: str, apart: Apart) -> None:
    switch, read = SWITCHES[name]
    before = read()
    try:
        for _ in range(2):
            apart.enter()
            switch()
            switched = read()
            apart.leave()
            assert read() == before != switched
        apart.enter()
        assert read() == switched, "a person's settings hold from cell to cell"
    finally:
        apart.leave()
    assert read() == before


@pytest.mark.parametrize("name", list(SWITCHES))
@pytest.mark.filterwarnings("ignore")
def test_what_is_switched_behind_a_cell_reaches_no_operation(name: str, apart: Apart) -> None:
    switch, read = SWITCHES[name]
    before = read()
    apart.enter()
    apart.leave()
    try:
        switch()  # by a task that the cell has begun
        with apart.training():
            assert read() == before
        switch()
        apart.enter()  # and what is found then is not training's
        apart.leave()
        assert read() == before
    finally:
        with apart.training():
            pass


def test_what_an_operation_sets_stays(apart: Apart) -> None:
    before = np.geterr()
    apart.enter()
    apart.leave()
    try:
        with apart.training():
            np.seterr(under="raise")
        with apart.training():
            assert np.geterr()["under"] == "raise"
    finally:
        np.seterr(**before)


def test_a_cell_cannot_change_how_many_threads_compute(apart: Apart) -> None:
    before = torch.get_num_threads()
    apart.enter()
    for _ in range(2):  # in the cell, and by what goes on behind it
        with pytest.warns(UserWarning, match="set_num_threads does nothing"):
            torch.set_num_threads(before + 1)
        assert torch.get_num_threads() == before
        apart.leave()
    with apart.training():
        torch.set_num_threads(before + 1)
        assert torch.get_num_threads() == before + 1
        torch.set_num_threads(before)


def test_modes_that_were_entered_are_left(apart: Apart) -> None:
    apart.enter()
    mode = torch.inference_mode()
    mode.__enter__()
    torch.set_flush_denormal(True)
    torch.set_default_device("cpu")  # a mode in the way of every call
    apart.leave()
    assert not torch.is_inference_mode_enabled()
    assert float(torch.tensor([1e-40]) * 1) != 0
    assert torch._C._len_torch_function_stack() == 0
    apart._modes.pop().__exit__(None, None, None)
    mode.__exit__(None, None, None)


def test_modes_are_none_of_an_operation_and_still_the_persons(apart: Apart) -> None:
    apart.enter()
    apart.leave()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        with apart.training():
            assert torch.zeros(1).device.type == "cpu"
            _ = torch.ones(2, 2, device="cpu") @ torch.ones(2, 2, device="cpu")
        assert counter.get_total_flops() == 0
        assert torch.zeros(1).device.type == "meta"
    assert torch.zeros(1).device.type == "cpu"
