"""The OpenAI-compatible routes, asked by OpenAI's own client, on a fake engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from jupyter_tinker.server import chat
from jupyter_tinker.wire import sampling
from tests.server.fake_engine import FORBIDDEN, FakeEngine

pytest_plugins = ["pytest_jupyter.jupyter_server"]
pytestmark = pytest.mark.usefixtures("fake_engine")
REPLY = "Grüße 👋!"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
# What differs between the two routes, and what does not.
CHAT, COMPLETION = "chat", "completion"


class Stage:
    """OpenAI's client, and the engine behind the server."""

    def __init__(self, url: str, key: str, app: Any, text: chat.Text) -> None:
        self.url = url
        self.client = AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
        self.service = app.web_app.settings["tinker_service"]
        self.engine: FakeEngine = self.service.supervisor
        self.text = text
        self.engine.reply = [*text.encode(REPLY), 2]  # and the end of the turn

    async def ask(self, route: str, **fields: Any) -> Any:
        fields = {"model": "tiny", **fields}
        if route == CHAT:
            return await self.client.chat.completions.create(**{"messages": MESSAGES, **fields})
        return await self.client.completions.create(
            **{"prompt": "Hello", "max_tokens": 99, **fields}
        )

    async def refused(self, route: str, **fields: Any) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as refused:
            await self.ask(route, **fields)
        return refused.value


@pytest.fixture
def stage(
    jp_serverapp: Any, jp_base_url: str, jp_http_port: int, tiny_model_dir: Path, jp_fetch: Any
) -> Stage:
    url = f"http://localhost:{jp_http_port}{jp_base_url}tinker/oai/api/v1"
    key = f"tml-{jp_serverapp.identity_provider.token}"
    return Stage(url, key, jp_serverapp, chat.load(tiny_model_dir))


def said(choice: Any) -> str:
    return str(choice.message.content if hasattr(choice, "message") else choice.text)


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
async def test_an_answer(stage: Stage, route: str) -> None:
    answer = await stage.ask(route)
    (choice,) = answer.choices
    assert said(choice) == REPLY
    assert choice.finish_reason == "stop"
    assert answer.model == "tiny"
    prompt = stage.text.encode_chat(MESSAGES) if route == CHAT else stage.text.encode("Hello")
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(stage.engine.reply)
    (op,) = [op for op in stage.engine.ops if isinstance(op, sampling.Sample)]
    assert json.loads(op.body)["prompt"]["chunks"][0]["tokens"] == prompt


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
async def test_a_streamed_answer(stage: Stage, route: str) -> None:
    stage.engine.step_seconds = 0.02
    stream = await stage.ask(route, stream=True, n=2, stream_options={"include_usage": True})
    texts, finished, usage = {0: "", 1: ""}, {}, None
    parts = 0
    async for part in stream:
        usage = part.usage or usage
        for choice in part.choices:
            new = choice.delta.content if route == CHAT else choice.text
            texts[choice.index] += new or ""
            parts += bool(new)
            finished[choice.index] = choice.finish_reason or finished.get(choice.index)
    assert texts == {0: REPLY, 1: REPLY}
    assert finished == {0: "stop", 1: "stop"}
    assert parts > 4
    assert usage.completion_tokens == 2 * len(stage.engine.reply)


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_stop_string_is_left_out(stage: Stage, route: str, stream: bool) -> None:
    answer = await stage.ask(route, stop=["👋"], stream=stream)
    if stream:
        choices = [part.choices[0] async for part in answer if part.choices]
        text = "".join((c.delta.content if route == CHAT else c.text) or "" for c in choices)
    else:
        text = said(answer.choices[0])
    assert text == "Grüße "


async def test_what_was_asked_reaches_the_engine(stage: Stage) -> None:
    await stage.ask(
        CHAT, max_completion_tokens=3, temperature=0.5, top_p=0.9, seed=7, n=2, stop="x"
    )
    (op,) = [op for op in stage.engine.ops if isinstance(op, sampling.Sample)]
    body = json.loads(op.body)
    assert body["num_samples"] == 2
    wanted = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["x"]}
    assert body["sampling_params"] == {**wanted, "top_k": -1}


async def test_a_length_that_is_reached_says_so(stage: Stage) -> None:
    answer = await stage.ask(CHAT, max_tokens=1)
    assert answer.choices[0].finish_reason == "length"


async def test_prompts_are_texts_or_tokens_one_or_many(stage: Stage) -> None:
    stage.engine.reply = []
    for prompt, count in [
        ("one", 1),
        (["one", "two"], 2),
        ([10, 11], 1),
        ([[10, 11], [20]], 2),
    ]:
        answer = await stage.ask(COMPLETION, prompt=prompt, max_tokens=2)
        assert [choice.index for choice in answer.choices] == list(range(count))
    assert said(answer.choices[0]) == stage.text.decode([12, 13])
    assert said(answer.choices[1]) == stage.text.decode([21, 22])


async def test_log_probabilities(stage: Stage) -> None:
    answer = await stage.ask(CHAT, logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == len(stage.engine.reply) - 1  # the end of the turn has no text
    assert [entry.logprob for entry in entries[:2]] == [-1.0, -2.0]
    assert len(entries[0].top_logprobs) == 2
    assert bytes(entries[0].bytes).decode() == entries[0].token == "G"
    answer = await stage.ask(COMPLETION, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs.token_logprobs[:2] == [-1.0, -2.0]
    assert logprobs.text_offset[:2] == [0, 1]
    assert len(logprobs.tokens) == len(stage.engine.reply) - 1


async def test_the_models_are_base_models_and_checkpoints(stage: Stage) -> None:
    await stage.service.checkpoints.add(
        (path := _path()),
        base_model="tiny",
        base_path="/models/tiny",
        lora={},
        step=1,
        size_bytes=1,
        user_metadata=None,
        expires_at=None,
    )
    stage.service.checkpoints.folder(path).mkdir(parents=True)
    listed = [model.id async for model in stage.client.models.list()]
    assert listed == ["tiny", str(path)]
    answer = await stage.ask(CHAT, model=str(path))
    assert said(answer.choices[0]) == REPLY
    (loaded,) = stage.engine.loaded.values()
    assert isinstance(loaded, sampling.LoadSampler)
    assert loaded.checkpoint == str(stage.service.checkpoints.folder(path))


def _path() -> Any:
    from jupyter_tinker.server.checkpoints import CheckpointPath

    return CheckpointPath("run", "sampler_weights", "name")


@pytest.mark.parametrize("route", [CHAT, COMPLETION])
@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {"5": 1}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"extra_body": {"best_of": 3}},
        {"extra_body": {"tools": [{"type": "function", "function": {"name": "f"}}]}},
        {"extra_body": {"response_format": {"type": "json_object"}}},
        {"extra_body": {"guided_regex": "a+"}},
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    stage: Stage, route: str, fields: dict[str, Any]
) -> None:
    error = await stage.refused(route, **fields)
    name = next(iter(fields.get("extra_body", fields)))
    assert error.status_code == 400
    assert error.code == "unsupported_parameter"
    assert error.param == name
    assert name in error.message
    assert not stage.engine.ops


async def test_what_leaves_the_answer_as_it_is_may_be_sent(stage: Stage) -> None:
    await stage.ask(CHAT, user="ada", presence_penalty=0, tools=[], logit_bias={}, metadata={})


@pytest.mark.parametrize(
    ("route", "fields", "status"),
    [
        (CHAT, {"model": "unknown"}, 404),
        (CHAT, {"model": "tinker://run/weights/unknown"}, 404),
        (CHAT, {"messages": []}, 400),
        (CHAT, {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, 400),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
        (CHAT, {"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, 400),
        (CHAT, {"n": 0}, 400),
        (CHAT, {"n": 10**6}, 400),
        (CHAT, {"max_tokens": 0}, 400),
        (CHAT, {"temperature": -1}, 400),
        (CHAT, {"temperature": "hot"}, 400),
        (CHAT, {"top_p": 2}, 400),
        (CHAT, {"stop": "x" * 10_000}, 400),
        (CHAT, {"stop": ["x"] * 10_000}, 400),
        (CHAT, {"seed": 2**70}, 400),
        (CHAT, {"top_logprobs": 21, "logprobs": True}, 400),
        (CHAT, {"logprobs": True, "stream": True}, 400),
        (COMPLETION, {"prompt": ""}, 400),
        (COMPLETION, {"prompt": []}, 400),
        (COMPLETION, {"prompt": [[]]}, 400),
        (COMPLETION, {"prompt": [-1]}, 400),
        (COMPLETION, {"prompt": ["x"] * 1000}, 400),
        (COMPLETION, {"prompt": {"a": 1}}, 400),
        (COMPLETION, {"prompt": [FORBIDDEN]}, 400),
        (COMPLETION, {"prompt": [FORBIDDEN], "stream": True}, 400),
    ],
)
async def test_bad_requests_get_a_sentence(
    stage: Stage, route: str, fields: dict[str, Any], status: int
) -> None:
    error = await stage.refused(route, **fields)
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert len(error.body["message"]) > 10
    assert not stage.engine.held


async def test_strangers_get_an_error_in_openais_form(stage: Stage) -> None:
    stranger = AsyncOpenAI(base_url=stage.url, api_key="tml-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused:
        await stranger.models.list()
    assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError, match="nothing at"):
        await stage.client.embeddings.create(model="tiny", input="x")


async def test_keys_of_ours_open_these_routes(stage: Stage) -> None:
    secret = await asyncio.to_thread(stage.service.keys.create, "laptop")
    client = AsyncOpenAI(base_url=stage.url, api_key=secret, max_retries=0)
    assert [model.id async for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError):  # a key opens no folders
        await client.completions.create(model="/models", prompt="x")
    await asyncio.to_thread(stage.service.keys.revoke, "laptop")
    with pytest.raises(openai.AuthenticationError):
        await client.models.list()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_frees_its_place(stage: Stage, stream: bool) -> None:
    stage.engine.reply = []
    asking = asyncio.create_task(_read_all(stage.ask(CHAT, max_tokens=10**6, stream=stream)))
    await _until(lambda: bool(stage.engine.held))
    asking.cancel()
    await asyncio.wait([asking])
    await _until(lambda: not stage.engine.held)


async def test_an_engine_that_fails_is_a_server_error(stage: Stage) -> None:
    async def broken() -> int:
        from jupyter_tinker.server.engine_client import EngineDied

        raise EngineDied("the engine did not start")

    stage.engine.ensure_started = broken  # type: ignore[method-assign]
    error = await stage.refused(CHAT)
    assert error.status_code == 500
    assert "did not start" in error.message


async def _read_all(asking: Coroutine[Any, Any, Any] | Awaitable[Any]) -> None:
    answer = await asking
    async for _ in answer:
        pass


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.002)
