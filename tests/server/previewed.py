"""A service on a fake engine that has a run, and who asks for previews of it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server import previews
from jupyter_tinker.server.database import Database, default_url
from jupyter_tinker.server.model_folder import BaseModel
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire import ops, sampling, tinker
from jupyter_tinker.wire.previews import Preview
from tests.byte_pairs import byte_pairs
from tests.conftest import CHAT_TEMPLATE
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import RUN, SESSION, Client, OneModel, add_session, make_service

HELLO = Preview(prompts=["Hello", "And you?"], every=2, max_tokens=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that has a tokenizer of bytes and a chat template, and no weights."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_pairs(300, ["<end>"], ["hello"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


class Stage:
    """A service, its engine, and a client of its one run."""

    def __init__(self, state: Path, model: Path) -> None:
        self.state = state
        self.engine = FakeEngine()
        self.model = model
        self.service = self._serve()
        self.client = Client(self.service)
        self.copied: list[tuple[int, str, str]] = []  # step, weights, and those of the copy
        self.engine.after = self._look

    def _serve(self) -> TinkerService:
        service = make_service(self.state, self.engine, Database(default_url(self.state)))
        catalog = _Catalog(self.model)
        service.catalog = service._creation._catalog = service.sampling._catalog = catalog  # type: ignore[assignment]
        return service

    async def begin(self) -> None:
        add_session(self.service._database)
        self.service.start("here")
        await self.client.create()

    def _look(self, op: ops.Op) -> None:
        if isinstance(op, sampling.SnapshotSampler):
            run = self.engine.runs.states[op.run]
            self.copied.append((run.step, run.weights, self.engine.copies[op.sampler]))

    async def ask(self, preview: Preview = HELLO) -> None:
        await self.service.previews.change(RUN, preview, by="ada")

    async def steps(self, count: int) -> list[dict[str, Any]]:
        return [await self.client.step(n) for n in range(count)]

    async def rounds(self, count: int) -> list[dict[str, Any]]:
        """The run's rounds, once there are so many."""
        async with asyncio.timeout(10):
            while len(rows := await self.service.previews.rounds(RUN, 0, 1000)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return [{"step": row.step, "actor": row.actor, **row.data} for row in rows]

    async def idle(self) -> None:
        """Until no preview is under way, nor anything of one left in the engine."""
        await until(lambda: not self.service.previews._going and not self.engine.loaded)

    async def end(self) -> None:
        """End the client's session, and with it the run."""
        reason = tinker.FinishReason(type="success")
        await self.service.sessions.finish(SESSION, tinker.Finish(reason=reason))
        run = await self.service.run(RUN)
        await until(lambda: run.ended is not None)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)


class _Catalog(OneModel):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, name: str, *, allow_path: bool = False) -> BaseModel:
        return replace(super().resolve(name, allow_path=allow_path), path=self.folder)


@pytest.fixture
def stage(tmp_path: Path, folder: Path, jp_asyncio_loop: Any) -> Iterator[Stage]:
    async def made() -> Stage:
        stage = Stage(tmp_path, folder)
        await stage.begin()
        return stage

    stage = jp_asyncio_loop.run_until_complete(made())
    yield stage
    stage.engine.paused.set()
    jp_asyncio_loop.run_until_complete(stage.service.stop())


def replace_every(preview: Preview, every: int) -> Preview:
    return preview.model_copy(update={"every": every})


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, no preview gets further than to its copy."""
    go, encoded = threading.Event(), previews.encoded

    def wait(*asked: Any) -> Any:
        assert go.wait(10)
        return encoded(*asked)

    with monkeypatch.context() as patched:
        patched.setattr(previews, "encoded", wait)
        yield
    go.set()
