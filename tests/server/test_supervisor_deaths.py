"""Which operation an engine died of, and when the next engine is started: on a stand-in kernel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
import zmq

from jupyter_tinker.server.engine_client import EngineDied
from jupyter_tinker.server.history import Plan
from jupyter_tinker.server.progress import Tasks
from jupyter_tinker.server.revival import Revival
from jupyter_tinker.server.runs import Run
from jupyter_tinker.server.schema import RunRow, SnapshotRow
from jupyter_tinker.server.supervisor import EngineNotStarted, EngineSupervisor
from jupyter_tinker.server.turns import Turns
from jupyter_tinker.wire import ops
from tests.server.fake_engine import STATUS

BATCH = ops.ForwardBackward("run", b"")
STEP = ops.OptimStep("run", ops.AdamParams())
SNAPSHOT = ops.SnapshotRun("run", "/file")  # is written beside what is done


class IOPub:
    """What a kernel says to everybody."""

    def __init__(self) -> None:
        self.topics = [b""]
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @property
    def socket(self) -> Any:
        return self

    def setsockopt(self, option: int, topic: bytes) -> None:
        (self.topics.remove if option == zmq.UNSUBSCRIBE else self.topics.append)(topic)

    async def get_msg(self, **_: Any) -> dict[str, Any]:
        return await self._said.get()

    def say(self, about: str, content: dict[str, Any]) -> None:
        self._said.put_nowait({"parent_header": {"msg_id": about}, "content": content})


class Kernel:
    """A kernel, its manager and its client in one: answers when it is told to."""

    def __init__(self, *, starts: bool | None = True) -> None:
        self.alive = self.has_kernel = self.shuts_down = False
        self.starts = starts
        self.asked: list[tuple[str, str]] = []  # message id and operation, not answered yet
        self._replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.iopub_channel = IOPub()
        self._count = 0

    # As a manager

    async def start_kernel(self, **_: Any) -> None:
        self.alive = self.has_kernel = True

    def client(self) -> Any:
        return self

    async def is_alive(self) -> bool:
        return self.alive

    @property
    def provisioner(self) -> Any:
        return self if self.has_kernel else None

    async def kill(self) -> None:
        self.alive = False

    async def shutdown_kernel(self, *, now: bool) -> None:
        assert not self.shuts_down, "a manager cannot be asked twice"
        self.shuts_down = True
        for _ in range(20):
            await asyncio.sleep(0)
        self.alive = self.has_kernel = False

    # As a client

    def start_channels(self, **_: Any) -> None:
        pass

    stop_channels = start_channels

    @property
    def session(self) -> Any:
        return self

    shell_channel = socket = session

    def msg(self, _: str, content: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        return {"header": {"msg_id": str(self._count)}, "content": content}

    def serialize(self, message: dict[str, Any]) -> list[bytes]:
        content = {k: v for k, v in message["content"].items() if k != "body"}
        return [json.dumps([message["header"]["msg_id"], content["op"]]).encode()]

    async def send_multipart(self, frames: list[bytes]) -> None:
        message_id, op = json.loads(frames[0])
        self.asked.append((message_id, op))
        if op == "start":
            if self.starts:
                self.answer(**asdict(STATUS))
            elif self.starts is False:
                self.alive = False

    async def get_msg(self, **_: Any) -> dict[str, Any]:
        return await self._replies.get()

    # As the test wants it

    def answer(self, number: int = 0, **result: Any) -> None:
        message_id, _ = self.asked.pop(number)
        content = {"ok": True, "seconds": 0.0, "result": result}
        self._replies.put_nowait({"parent_header": {"msg_id": message_id}, "content": content})

    def refuse(self) -> None:
        message_id, _ = self.asked.pop(0)
        content = {"ok": False, "seconds": 0.0, "error": "no", "category": "user"}
        self._replies.put_nowait({"parent_header": {"msg_id": message_id}, "content": content})


class Stage:
    """A supervisor, and the kernels that it has started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernels: list[Kernel] = []
        self.starts: bool | None = True  # None: it takes its time
        self.told: list[str] = []
        self.waits: list[float] = []
        self.rests = False  # pauses do not end by themselves
        self.supervisor = EngineSupervisor()
        self.supervisor.on_start = lambda status: self.told.append("started")
        self.supervisor.on_death = self.told.append
        monkeypatch.setattr(self.supervisor._address, "manager", self._make)
        sleep = asyncio.sleep

        async def soon(seconds: float) -> None:
            if seconds not in (0, 0.2):  # the watch's own
                self.waits.append(seconds)
                await sleep(3600 if self.rests else 0)
            await sleep(0)

        monkeypatch.setattr(asyncio, "sleep", soon)

    def _make(self, _: EngineSupervisor) -> Kernel:
        assert not any(kernel.has_kernel for kernel in self.kernels), "they have one address"
        self.kernels.append(Kernel(starts=self.starts))
        return self.kernels[-1]

    async def ask(self, *asked: ops.Op) -> list[asyncio.Future[Any]]:
        generation = await self.supervisor.ensure_started()
        return [
            asyncio.ensure_future(await self.supervisor.begin(op, generation=generation))
            for op in asked
        ]

    async def asked(self, name: str) -> None:
        """Wait until the newest kernel is asked for an operation, which it has not answered."""
        while not self.kernels or name not in [op for _, op in self.kernels[-1].asked]:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def die(self, *waiting: asyncio.Future[Any]) -> list[bool]:
        """Of each that waits, whether the engine is said to have been at it."""
        self.kernels[-1].alive = False
        during = []
        for one in waiting:
            with pytest.raises(EngineDied) as died:
                await one
            during.append(died.value.during)
        while self.kernels[-1].has_kernel:  # noqa: ASYNC110 (a process sets no event when it dies)
            await asyncio.sleep(0)
        return during


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Stage], Awaitable[None]]], None]:
    def _tell(story: Callable[[Stage], Awaitable[None]]) -> None:
        async def whole() -> None:
            stage = Stage(monkeypatch)
            try:
                await story(stage)
            finally:
                await stage.supervisor.stop()

        asyncio.run(asyncio.wait_for(whole(), 10))

    return _tell


@pytest.mark.parametrize(
    ("asked", "answered", "during"),
    [
        ([BATCH], 0, [True]),
        ([BATCH, STEP, BATCH], 0, [True, False, False]),
        ([BATCH, STEP, BATCH], 1, [True, False]),
        ([SNAPSHOT], 0, [False]),
        ([SNAPSHOT, BATCH, STEP], 0, [False, True, False]),
        ([BATCH, SNAPSHOT, STEP], 1, [False, True]),
        ([STEP, BATCH], 2, []),
    ],
)
def test_the_engine_died_of_the_first_that_it_was_to_do(
    tell: Any, asked: list[ops.Op], answered: int, during: list[bool]
) -> None:
    async def story(stage: Stage) -> None:
        waiting = await stage.ask(*asked)
        for one in waiting[:answered]:
            stage.kernels[0].answer()
            await one
        assert await stage.die(*waiting[answered:]) == during

    tell(story)


def test_a_refusal_is_an_answer(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        first, second = await stage.ask(BATCH, STEP)
        stage.kernels[0].refuse()
        with pytest.raises(ops.OpError, match="no"):
            await first
        assert await stage.die(second) == [True]

    tell(story)


def test_what_nobody_waits_for_is_not_what_it_died_of(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        first, second = await stage.ask(BATCH, STEP)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert await stage.die(second) == [True]

    tell(story)


def test_another_engine_is_asked_nothing_that_was_meant_for_the_last(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        supervisor = stage.supervisor
        first = await supervisor.ensure_started()
        assert supervisor.holds(first)
        await stage.die()
        assert not supervisor.holds(first)
        for _ in range(2):
            with pytest.raises(EngineDied) as died:
                await supervisor.begin(BATCH, generation=first)
            assert not died.value.during
            second = await supervisor.ensure_started()
        assert second == first + 1
        assert stage.kernels[1].asked == []
        assert stage.told == ["started", "the engine died", "started"]

    tell(story)


def test_engines_that_do_nothing_are_started_ever_later(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        for _ in range(9):
            await stage.supervisor.ensure_started()
            await stage.die()
        assert stage.waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
        (done,) = await stage.ask(STEP)
        stage.kernels[-1].answer()
        await done
        stage.waits.clear()
        await stage.die()
        await stage.supervisor.ensure_started()
        assert stage.waits == []

    tell(story)


def test_engines_that_die_while_they_get_a_run_back_are_started_ever_later(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        run = Run(RunRow(id="run", base_model="tiny", base_path="/m"), ops.LoraSpec(4, 1))
        snapshot = SnapshotRow(run_id="run", position=1, step=1, file="f", sha256="0")
        revival = Revival(
            supervisor=stage.supervisor,
            turns=Turns(0.5),
            history=Mock(plan=AsyncMock(return_value=Plan(snapshot, []))),
            snapshots=Mock(file=lambda row: row.file),
            checkpoints=Mock(),
            custom_losses=Mock(),
            events=Mock(progress=Tasks()),
            backlog=Mock(),
            log=Mock(),
        )
        for _ in range(5):
            bringing = asyncio.create_task(revival.bring(run))
            await stage.asked("unload_run")
            stage.kernels[-1].answer()
            await stage.asked("restore_run")
            assert await stage.die(bringing) == [False]
        assert stage.waits == [0.5, 1.0, 2.0]
        bringing = asyncio.create_task(revival.bring(run))
        for name in ("unload_run", "restore_run"):
            await stage.asked(name)
            stage.kernels[-1].answer(lora=asdict(run.lora), trainable_parameters=1, step=1)
        await bringing
        (done,) = await stage.ask(STEP)  # something new, at last
        stage.kernels[-1].answer()
        await done
        await stage.die()
        stage.waits.clear()
        await stage.supervisor.ensure_started()
        assert stage.waits == []

    tell(story)


def test_an_engine_that_does_not_start_says_so_to_all_that_wait(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = False
        for _ in range(3):
            with pytest.raises(EngineNotStarted, match="did not start") as failed:
                await stage.supervisor.ensure_started()
            assert not failed.value.during
            assert not stage.supervisor.running
        assert stage.waits == [0.5]
        assert "the engine died" not in stage.told
        stage.starts = True
        assert stage.supervisor.holds(await stage.supervisor.ensure_started())

    tell(story)


def test_many_that_want_an_engine_get_one(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        numbers = await asyncio.gather(*(stage.supervisor.ensure_started() for _ in range(9)))
        assert set(numbers) == {1}
        assert len(stage.kernels) == 1

    tell(story)


def test_a_start_goes_on_when_who_asked_for_it_gives_up(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = None
        supervisor = stage.supervisor
        first = asyncio.create_task(supervisor.ensure_started())
        await stage.asked("start")
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.create_task(supervisor.ensure_started())
        await asyncio.sleep(0)
        assert supervisor.starting
        stage.kernels[0].answer(**asdict(STATUS))
        assert await second == 1
        assert supervisor.status == STATUS
        assert len(stage.kernels) == 1
        await stage.die()
        assert stage.told == ["started", "the engine died"]
        stage.starts = True
        assert await supervisor.ensure_started() == 2

    tell(story)


def test_a_start_that_fails_when_nobody_waits_is_made_up_for(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = None
        first = asyncio.create_task(stage.supervisor.ensure_started())
        await stage.asked("start")
        first.cancel()
        stage.kernels[0].alive = False
        while stage.supervisor.starting:  # noqa: ASYNC110 (a process sets no event when it dies)
            await asyncio.sleep(0)
        assert not stage.supervisor.running
        stage.starts = True
        await stage.supervisor.ensure_started()
        assert stage.told == ["started"]

    tell(story)


def test_no_process_is_left_of_a_start_that_the_loop_cancels(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = None
        waiting = asyncio.create_task(stage.supervisor.ensure_started())
        await stage.asked("start")
        for start in stage.supervisor._starts:
            start.cancel()
        await asyncio.wait([waiting])
        assert not stage.kernels[0].alive
        assert not stage.supervisor.running

    tell(story)


def test_the_end_waits_for_no_start(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.starts = None
        waiting = asyncio.create_task(stage.supervisor.ensure_started())
        await stage.asked("start")
        await stage.supervisor.stop()
        assert not stage.kernels[0].alive
        assert not stage.supervisor.starting
        assert not waiting.done()  # until the process ends
        waiting.cancel()

    tell(story)


def test_the_end_waits_for_no_pause(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        for _ in range(2):
            await stage.supervisor.ensure_started()
            await stage.die()
        stage.rests = True
        waiting = asyncio.create_task(stage.supervisor.ensure_started())
        while not stage.waits:  # noqa: ASYNC110 (it is a stand-in that counts them)
            await asyncio.sleep(0)
        await stage.supervisor.stop()
        assert len(stage.kernels) == 2
        assert not waiting.done()
        waiting.cancel()

    tell(story)


def test_after_the_end_no_engine_is_started(tell: Any) -> None:
    async def story(stage: Stage) -> None:
        (waiting,) = await stage.ask(BATCH)
        await stage.supervisor.stop()
        with pytest.raises(EngineDied, match="shut down"):
            await waiting
        with pytest.raises(TimeoutError):  # the next server will do it
            await asyncio.wait_for(stage.supervisor.ensure_started(), 0.05)
        assert stage.told == ["started"]

    tell(story)
