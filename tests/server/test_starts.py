"""An engine that does not start costs a request time, and only in the end the request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_tinker.server import training
from jupyter_tinker.server.supervisor import EngineNotStarted
from tests.server.fake_engine import FakeEngine
from tests.server.one_service import Client, add_session, make_service


class Reluctant(FakeEngine):
    """Fails to start until it has been asked often enough."""

    def __init__(self, failures: float, *, refused: bool = False) -> None:
        super().__init__()
        self.failures = failures
        self.refused = refused
        self.starts = 0

    async def ensure_started(self) -> int:
        if not self.running:
            self.starts += 1
            if self.starts <= self.failures:
                await asyncio.sleep(0.01)
                raise EngineNotStarted("the engine did not start: why", refused=self.refused)
        return await super().ensure_started()


@pytest.fixture
def tell(tmp_path: Path) -> Any:
    def _tell(engine: Reluctant, story: Callable[[Client], Awaitable[None]]) -> None:
        async def whole() -> None:
            service = make_service(tmp_path, engine)
            add_session(service._database)
            service.start("here")
            await story(Client(service))
            await service.stop()

        asyncio.run(asyncio.wait_for(whole(), 20))

    return _tell


def test_it_is_started_again_as_long_as_that_may_help(tell: Any) -> None:
    async def story(client: Client) -> None:
        assert "error" not in await client.create()
        assert (await client.step())["optimizer_step"] == 1

    engine = Reluctant(7)
    tell(engine, story)
    assert engine.starts == 8


def test_it_is_given_up_after_a_while(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_START_SECONDS", 0.05)

    async def story(client: Client) -> None:
        assert "did not start: why" in (await client.create())["error"]

    tell(Reluctant(float("inf")), story)


def test_it_is_believed_that_it_cannot_work(tell: Any) -> None:
    async def story(client: Client) -> None:
        assert "did not start: why" in (await client.create())["error"]

    engine = Reluctant(float("inf"), refused=True)
    tell(engine, story)
    assert engine.starts == 1
