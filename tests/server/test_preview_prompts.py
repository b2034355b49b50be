"""What a preview may be set to, and what its prompts are to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from jupyter_tinker.wire import sampling
from jupyter_tinker.wire.previews import Preview, parse_preview
from jupyter_tinker.wire.tinker import BadRequest
from tests.server import previewed
from tests.server.one_service import RUN
from tests.server.previewed import HELLO, Stage

pytest_plugins = ["pytest_jupyter.jupyter_server"]
folder, stage = previewed.folder, previewed.stage


@pytest.mark.parametrize(
    ("chat", "encoded"),
    [
        (None, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (True, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (False, "Hi"),
    ],
)
async def test_a_prompt_is_what_a_user_says_where_there_is_a_template(
    stage: Stage, folder: Path, chat: bool | None, encoded: str
) -> None:
    await stage.ask(Preview(prompts=["Hi"], chat=chat))
    await stage.service.previews.now(RUN, by="ada")
    await stage.rounds(1)
    (op,) = [op for op in stage.engine.ops if isinstance(op, sampling.Sample)]
    body = json.loads(op.body)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert body["prompt"]["chunks"][0]["tokens"] == tokenizer.encode(encoded).ids
    assert body["sampling_params"] == {"max_tokens": 64, "temperature": 0.0, "seed": 0}


async def test_a_model_without_a_template_or_a_tokenizer(tmp_path: Path, folder: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    mute = tmp_path / "mute"
    mute.mkdir()
    for model, chat, told in ((plain, True, "no chat template"), (mute, None, "no tokenizer")):
        state = tmp_path / f"state-{model.name}"
        state.mkdir()
        stage = Stage(state, model)
        await stage.begin()
        with pytest.raises(BadRequest, match=told):
            await stage.ask(Preview(prompts=["Hi"], chat=chat))
        assert (await stage.service.previews.describe(RUN))["prompts"] == []
        await stage.service.stop()


BOUNDED: list[tuple[dict[str, Any], str]] = [
    ({"prompts": ["a"] * 6}, "prompts must be a list of at most 5"),
    ({"prompts": [""]}, "prompts must be"),
    ({"prompts": ["a" * 4001]}, "each of 1 to 4000 characters"),
    ({"prompts": "a"}, "prompts must be"),
    ({"every": 0}, "every must be"),
    ({"every": 2.5}, "every must be"),
    ({"max_tokens": 257}, "max_tokens must be a whole number from 1 to 256"),
    ({"temperature": -1}, "temperature must be"),
    ({"temperature": float("nan")}, "temperature must be"),
    ({"seed": -1}, "seed must be"),
    ({"chat": "yes"}, "chat must be"),
    ({"top_p": 1}, "A preview has no 'top_p'; it has prompts, every"),
]


@pytest.mark.parametrize(("body", "told"), BOUNDED)
def test_settings_that_make_no_sense(body: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        parse_preview(body)


@pytest.mark.parametrize("body", [b"[]", b"{", b'"x"'])
def test_bodies_that_are_no_settings(body: bytes) -> None:
    with pytest.raises(BadRequest, match="must be a JSON object"):
        parse_preview(body)


def test_when_one_is_due() -> None:
    assert [step for step in range(1, 8) if HELLO.due(step)] == [2, 4, 6]
    assert not Preview(prompts=["a"]).due(2)
    assert not Preview(every=1).due(2)
