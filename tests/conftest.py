"""Models to test with: a tiny one made here in a moment, and SmolLM2-135M, fetched once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# Each keeps one of the processes that test side by side for minutes.
LONGEST = (
    "cookbook/test_recipes.py",
    "torture/test_campaign.py",
    "browser/test_binder.py",
    "test_notebooks.py",
    "server/test_deaths.py",
    "browser/test_quickstart.py",
    "e2e/test_sampling_server.py",
    "e2e/test_cli.py",
    "e2e/test_apps.py",
    "test_release.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none is begun when the other processes are about to end.

    Beside others, a test with processes of its own has a second try: not one that fails twice, and
    not one of plain functions, which has no excuse.
    """
    places = {REPOSITORY / "tests" / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))
    if "PYTEST_XDIST_WORKER" in os.environ:
        for item in items:
            if any(item.get_closest_marker(name) for name in ("e2e", "cookbook")):
                item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_configure() -> None:
    _share_the_processors()
    # Once for all it looks whether this is a notebook, which some tests pretend.
    import tqdm.auto  # noqa: F401

    # A shell that runs the tests in the background has all that they start ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _share_the_processors() -> None:
    """Tests that run side by side, and all that they start, compute with as many threads as leave
    the others theirs: threads of a matrix product wait for one another, and for long where one of
    them has to wait for a processor."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if processes > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which browser the tests looked with, in whatever process they ran."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    known = [known for report in reports for known in getattr(report, "user_properties", ())]
    for browser in sorted({told for name, told in known if name == "chromium"}):
        terminalreporter.write_line(f"The browser tests' browser: {browser}")


@pytest.fixture(autouse=True)
def no_client_is_left_a_server() -> Iterator[None]:
    """What a client finds it keeps in the environment (`connect`), where tests that come later
    would find it again, and all that they start."""
    names = ("TINKER_BASE_URL", "TINKER_API_KEY")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two small layers with random weights, and a tokenizer of 384 byte pairs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tests.byte_pairs import byte_pairs

    folder = tmp_path_factory.mktemp("models") / "tiny"
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_pairs(384, special, text.splitlines()),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, fetched at first use and kept for later test runs."""
    from jupyter_tinker.server.pull import pull

    kept = os.environ.get("TINKER_TEST_MODELS") or REPOSITORY / ".cache" / "models"
    return pull("smollm2-135m", Path(kept)).path
