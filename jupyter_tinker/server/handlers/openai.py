"""OpenAI-compatible routes over the same samplers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web
from tornado.iostream import StreamClosedError

from ...wire.ops import OpError
from .. import chat, openai
from ..catalog import UnknownModelError
from ..checkpoints import UnknownCheckpoint, path_of
from ..sample_jobs import Job, Outcome
from ..samplers import Target
from .base import TinkerHandler, explain

_LISTED = 1000  # checkpoints


class OpenAIHandler(TinkerHandler):
    """Errors in OpenAI's form."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        status, sentence = explain(status_code, error)
        if isinstance(error, OpError) and error.category != "user":
            status = 500
        self.set_status(status)
        code = {401: "invalid_api_key", 404: "not_found"}.get(status)
        if isinstance(error, UnknownModelError | UnknownCheckpoint):
            code = "model_not_found"
        param = error.param if isinstance(error, openai.Unsupported) else None
        code = "unsupported_parameter" if param else code
        self.finish(json.dumps(openai.error_body(status, sentence, code=code, param=param)))


class UnknownHandler(OpenAIHandler):
    @web.authenticated
    async def get(self) -> None:
        raise web.HTTPError(404, f"There is nothing at {self.request.path[:200]}.")

    post = put = delete = patch = head = get


class ModelsHandler(OpenAIHandler):
    """Base models, and the checkpoints that can be sampled from."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        models = await asyncio.to_thread(self.service.catalog.models)
        saved, _ = await self.service.checkpoints.list(limit=_LISTED)
        listed = [{"id": model.name, "created": 0} for model in models]
        listed += [
            {"id": str(path_of(row)), "created": int(row.created_at)}
            for row in saved
            if row.kind != "external_weights"
        ]
        data = [{**model, "object": "model", "owned_by": "jupyter_tinker"} for model in listed]
        self.reply({"object": "list", "data": data})


class _SamplingHandler(OpenAIHandler):
    """Samples for one request; ends with it if the client goes away."""

    def initialize(self) -> None:
        super().initialize()
        self.jobs: list[Job] = []
        # Of each job by its number: new tokens, or at last its outcome.
        self.news: asyncio.Queue[tuple[int, list[list[int]] | Outcome]] = asyncio.Queue()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.cancel()

    def on_finish(self) -> None:
        super().on_finish()
        self.cancel()

    def cancel(self) -> None:
        for job in self.jobs:
            self.service.sampling.pump.cancel(job, OpError("The client went away."))

    async def answer(self, asked: openai.Asked) -> None:
        openai.check(asked)
        target, model = await self.service.sampling.target(
            asked.model, allow_path=self.may_name_paths
        )
        text = await asyncio.to_thread(chat.load, Path(model.path))
        prompts = await asyncio.to_thread(_prompts, text, asked)
        bodies = [openai.sample_body(asked, prompt) for prompt in prompts]
        for body in bodies:
            await asyncio.to_thread(_check, body)
        for number, body in enumerate(bodies):
            self.jobs.append(self._job(number, asked, target, body))
            self.service.sampling.pump.put(self.jobs[-1])
        tokens = sum(map(len, prompts))
        if asked.stream:
            await self._stream(asked, text, tokens)
        else:
            await self._whole(asked, text, tokens)

    def _job(self, number: int, asked: openai.Asked, target: Target, body: bytes) -> Job:
        def tell(what: list[list[int]] | Outcome) -> None:
            self.news.put_nowait((number, what))

        return self.service.sampling.job(
            target, body, asked.n, tell, stream=tell if asked.stream else None
        )

    async def _next(self) -> tuple[int, Sequence[list[int] | openai.Sampled]]:
        """News of a job: tokens, or its sequences. Raises `OpError`."""
        number, what = await self.news.get()
        if isinstance(what, OpError):
            raise what
        return number, openai.sampled(what) if isinstance(what, bytes) else what

    async def _whole(self, asked: openai.Asked, text: chat.Text, prompt_tokens: int) -> None:
        done: dict[int, list[openai.Sampled]] = {}
        while len(done) < len(self.jobs):
            number, sequences = await self._next()
            done[number] = sequences  # type: ignore[assignment]
        every = [one for number in sorted(done) for one in done[number]]
        choices = await asyncio.to_thread(
            lambda: [openai.choice(i, asked, text, one) for i, one in enumerate(every)]
        )
        usage = openai.usage(prompt_tokens, sum(len(one.tokens) for one in every))
        self.reply(openai.Answer.to(asked).whole(choices, usage))

    async def _stream(self, asked: openai.Asked, text: chat.Text, prompt_tokens: int) -> None:
        answer = openai.Answer.to(asked)
        voices = [_Voice(text, asked.stops) for _ in range(asked.n * len(self.jobs))]
        unfinished = len(self.jobs)
        first = await self._next()  # what is refused at once is refused as any other request
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")
        try:
            if answer.chat:
                await self._send(answer.part([answer.opening(i) for i in range(len(voices))]))
            number, what = first
            while True:
                for place, one in enumerate(what):
                    index = number * asked.n + place
                    for choice in voices[index].say(one):
                        await self._send(answer.part([answer.delta(index, *choice)]))
                unfinished -= bool(what) and isinstance(what[0], openai.Sampled)
                if not unfinished:
                    break
                number, what = await self._next()
            if asked.with_usage:
                total = openai.usage(prompt_tokens, sum(voice.heard for voice in voices))
                await self._send(answer.part([], usage=total))
            await self.finish("data: [DONE]\n\n", set_content_type="text/event-stream")
        except OpError as error:
            status = 400 if error.category == "user" else 500
            await self._send(openai.error_body(status, error.message))
            await self.finish(set_content_type="text/event-stream")
        except StreamClosedError:
            self.cancel()

    async def _send(self, part: dict[str, Any]) -> None:
        self.write(f"data: {json.dumps(part)}\n\n")
        await self.flush()


class _Voice:
    """What one streamed sequence has said."""

    def __init__(self, text: chat.Text, stops: list[str]) -> None:
        self._stream = chat.TextStream(text)
        self._stops = chat.StopFilter(stops)
        self.heard = 0  # tokens

    def say(self, news: list[int] | openai.Sampled) -> list[tuple[str, str | None]]:
        """The text that can be given now, and at the end all that is left and how it ended."""
        if not isinstance(news, openai.Sampled):
            self.heard += len(news)
            said = self._stops.push(self._stream.push(news))
            return [(said, None)] if said else []
        rest = news.tokens[self.heard :]
        self.heard += len(rest)
        said = self._stops.push(self._stream.push(rest, last=True), last=True)
        return [*([(said, None)] if said else []), ("", news.finish_reason)]


class CompletionsHandler(_SamplingHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        await self.answer(await self.parse(openai.CompletionRequest))


class ChatHandler(_SamplingHandler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        await self.answer(await self.parse(openai.ChatRequest))


def _prompts(text: chat.Text, asked: openai.Asked) -> list[list[int]]:
    if isinstance(asked, openai.ChatRequest):
        return [text.encode_chat([message.plain() for message in asked.messages])]
    return [
        text.encode(prompt) if isinstance(prompt, str) else prompt for prompt in asked.prompts()
    ]


def _check(body: bytes) -> None:
    from ...wire import sample_request

    sample_request.read(body)


HANDLERS = [
    (r"/models", ModelsHandler),
    (r"/completions", CompletionsHandler),
    (r"/chat/completions", ChatHandler),
    (r"(?:/.*)?", UnknownHandler),
]
