"""Traces through a model are what training computes, and leave nothing behind in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jupyter_tinker.engine.engine import Engine
from jupyter_tinker.engine.fast.lora import Lora
from jupyter_tinker.engine.run import Run
from jupyter_tinker.engine.wrappers import plain
from jupyter_tinker.wire import ops

from . import inside
from .inside import LORA, TOKENS, backward, state, step, view

trained = inside.trained

KINDS = ["untied", "tied", "qwen2", "gemma2", "cohere", "gpt_neox"]


def trained_hidden(run: Run, kind: str, layer: int) -> torch.Tensor:
    """What a layer hands on in training, where the layers are our own or those of transformers."""
    if (decoder := run.base.decoder) is not None:
        cut = replace(decoder, layers=decoder.layers[: layer + 1])
        stream = torch.tensor(TOKENS)
        return cut.forward(
            stream, [len(TOKENS)], Lora.of(run.adapter, run.adapter.gradient_views), keep=False
        )._last
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
    rounding = 0.0 if run.base.decoder is None else 3e-5
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
