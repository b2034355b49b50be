"""Tiny random models of several architectures, made once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from jupyter_tinker.engine import placement
from jupyter_tinker.engine.engine import Engine

from .reference import VOCAB, Client

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # far from uniform predictions
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {"num_key_value_heads": 2}

_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "untied": lambda: LlamaForCausalLM(
        LlamaConfig(**_SHAPE, **_GROUPED, tie_word_embeddings=False)
    ),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE, **_GROUPED, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE, **_GROUPED, tie_word_embeddings=True)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **_SHAPE,
            **_GROUPED,
            head_dim=8,
            final_logit_softcapping=5.0,
            attn_logit_softcapping=10.0,
            sliding_window=8,
        )
    ),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**_SHAPE, **_GROUPED, logit_scale=0.25)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SHAPE, tie_word_embeddings=False)),
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for one another cost tiny models more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu() -> Iterator[None]:
    """What is held against exact numbers is computed there, also where there is a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement.Machine, "detect", placement.Machine)
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by the name of its kind."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(3)
                _MODELS[kind]().save_pretrained(path)
        return path

    return folder


@pytest.fixture
def base(models: Callable[[str], Path]) -> Path:
    """A tiny Llama with an output layer of its own."""
    return models("untied")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(engine: Engine, base: Path) -> Client:
    """A client whose run is not yet created."""
    return Client(engine, base)
