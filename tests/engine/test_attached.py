"""A person's notebook on the engine's kernel, in its own process, beside what clients ask for."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.asynchronous import AsyncKernelClient

from jupyter_tinker.server.attach import Attach
from jupyter_tinker.server.engine_client import EngineDied
from jupyter_tinker.server.supervisor import EngineSupervisor
from jupyter_tinker.wire import ops
from jupyter_tinker.wire.progress import MESSAGE

from .reference import request, samples

pytestmark = pytest.mark.e2e

LORA = ops.LoraSpec(rank=4, seed=7)
STEP = ops.OptimStep("run", ops.AdamParams(learning_rate=1e-2))

# All that a cell might do between two steps of a client.
_CELLS = [
    """
import os, warnings, numpy, random, torch
torch.manual_seed(1); random.seed(1); numpy.random.seed(1); torch.rand(1000)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
warnings.simplefilter("ignore")
torch.set_num_threads(7)
torch.set_float32_matmul_precision("medium")
torch.set_flush_denormal(True)
torch.autograd.set_detect_anomaly(True)
torch.backends.mkldnn.enabled = False
numpy.seterr(all="raise")
os.chdir("/")
""",
    """
run = engine.runs["run"]
for layer in run.adapter.values():
    for name in ("A", "B", "grad_A", "grad_B", "exp_avg_A", "exp_avg_sq_B", "weight"):
        getattr(layer, name).fill_(float("nan"))
""",
    """
for which in ("run", None):
    traced = engine.trace([3, 1, 4, 1, 5], which, 1)
    traced.hidden.zero_(); traced.attention.zero_()
engine.delta_norms(run); engine.memory(); engine
mode = torch.inference_mode(); mode.__enter__()
autocast = torch.autocast("cpu", torch.bfloat16); autocast.__enter__()
""",
    # What goes on behind its cell, before and during operations.
    """
import asyncio, torch
async def behind():
    await asyncio.sleep(0)
    torch.set_num_threads(7)
    torch.set_default_dtype(torch.float64)
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        await asyncio.sleep(60)
task = asyncio.create_task(behind())
""",
    """
import asyncio, torch
async def also_behind():
    with torch.inference_mode():
        await asyncio.sleep(60)
also = asyncio.create_task(also_behind())
again = asyncio.get_running_loop().call_later(0.01, torch.set_grad_enabled, False)
""",
    "raise ValueError('of a person')",
    "import asyncio\nawait asyncio.sleep(0.01)",
    "%reset -f",
    "engine.trace([2, 7], engine.runs.latest)",
]

# Makes the next optimizer step wait until a file is there, as a large one takes its time.
_SLOW_STEP = """
import pathlib, time
from jupyter_tinker.engine import train
_step = train.optim_step
def _slowly(run, adam):
    pathlib.Path({begun!r}).touch()
    while not pathlib.Path({gate!r}).exists():
        time.sleep(0.01)
    return _step(run, adam)
train.optim_step = _slowly
"""


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110 (in another process)
        await asyncio.sleep(0.01)


class Person:
    """Somebody attached to the engine's kernel, with all that it publishes to them."""

    def __init__(self, engine: EngineSupervisor) -> None:
        assert engine.manager is not None
        # Of its own: the manager's have the identity of the server's, and would get its replies.
        self.client: Any = AsyncKernelClient(connection_file=engine.manager.connection_file)
        self.client.load_connection_file()
        self.published: list[dict[str, Any]] = []
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        self.client.start_channels(hb=False, stdin=False)
        self._tasks = [
            asyncio.create_task(self._listen(self.client.iopub_channel, self.published.append)),
            asyncio.create_task(self._listen(self.client.shell_channel, self._answered)),
        ]
        # What is published before a subscription has arrived is lost.
        while not self.published:
            await self.ask(self.client.kernel_info())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self.client.stop_channels()

    def begin(self, code: str) -> asyncio.Future[dict[str, Any]]:
        return self.ask(self.client.execute(code))

    def ask(self, message_id: str) -> asyncio.Future[dict[str, Any]]:
        return self._replies.setdefault(message_id, asyncio.get_running_loop().create_future())

    async def run(self, code: str) -> dict[str, Any]:
        content: dict[str, Any] = (await self.begin(code))["content"]
        return content

    async def printed(self, code: str) -> str:
        reply = await self.begin(code)
        assert reply["content"]["status"] == "ok", reply["content"]
        mine = reply["parent_header"]["msg_id"]

        def idle(message: dict[str, Any]) -> bool:
            return (
                message["parent_header"].get("msg_id") == mine
                and message["content"].get("execution_state") == "idle"
            )

        await until(lambda: any(map(idle, self.published)))
        return "".join(
            message["content"]["text"]
            for message in self.published
            if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == mine
        )

    def _answered(self, message: dict[str, Any]) -> None:
        future = self.ask(message["parent_header"]["msg_id"])
        if not future.done():
            future.set_result(message)

    async def _listen(self, channel: Any, hear: Callable[[dict[str, Any]], None]) -> None:
        while True:
            # Not for ever: what the client sends can swallow the sign that something has come.
            with suppress(Empty):
                hear(await channel.get_msg(timeout=0.1))


@asynccontextmanager
async def attached() -> AsyncIterator[tuple[EngineSupervisor, Person]]:
    engine = EngineSupervisor(device="cpu", num_threads=1)

    async def release(reason: str, now: bool) -> None:
        await engine.release(reason)

    attach = Attach(None, engine, release, engine.log)
    try:
        await engine.ensure_started()
        person = Person(engine)
        await person.open()
        try:
            yield engine, person
        finally:  # sockets left open hold up whoever collects the garbage
            await person.close()
    finally:
        await attach.close()
        await engine.stop()


Story = Callable[[EngineSupervisor, Person], Awaitable[None]]


@pytest.fixture
def tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Story], None]:
    """Runs a test's coroutine with an engine of its own, and somebody attached to it."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))

    def run(story: Story) -> None:
        async def told() -> None:
            async with attached() as (engine, person):
                await asyncio.wait_for(story(engine, person), 100)

        asyncio.run(told())

    return run


async def ask(engine: EngineSupervisor, op: ops.Op) -> dict[str, Any]:
    return (await engine.request(op))[0]


async def create(engine: EngineSupervisor, base: Path, run: str = "run") -> None:
    await ask(engine, ops.CreateRun(run, "tiny", str(base), LORA))


async def train(
    engine: EngineSupervisor, folder: Path, between: Callable[[], Awaitable[None]]
) -> list[Any]:
    """The numbers of some steps and the hash of all that the run is at their end."""
    numbers: list[Any] = []
    for number in range(6):
        loss = await ask(engine, ops.ForwardBackward("run", request(samples(number))))
        await between()
        step = await ask(engine, STEP)
        await between()
        numbers.append([loss["loss_sum"], step["grad_norm"], step["update_norm"]])
    file = folder / "snapshot"
    await ask(engine, ops.SnapshotRun("run", str(file)))
    return [numbers, hashlib.sha256(file.read_bytes()).hexdigest()]


def test_no_cell_changes_a_bit_of_what_a_client_trains(
    tell: Callable[[Story], None], base: Path, tmp_path: Path
) -> None:
    results: list[list[Any]] = []

    async def nobody() -> None:
        pass

    async def alone(engine: EngineSupervisor, _: Person) -> None:
        await create(engine, base)
        results.append(await train(engine, tmp_path, nobody))

    async def watched(engine: EngineSupervisor, person: Person) -> None:
        await create(engine, base)
        cells = iter(_CELLS * 2)

        async def one() -> None:
            # Not waited for: it stands between two operations of the client.
            begun = person.begin(next(cells))
            answers.append(begun)

        answers: list[asyncio.Future[dict[str, Any]]] = []
        results.append(await train(engine, tmp_path, one))
        replies = [(await answer)["content"] for answer in answers]
        failed = [reply["evalue"] for reply in replies if reply["status"] == "error"]
        assert set(failed) == {"of a person"}

    tell(alone)
    tell(watched)
    assert results[0] == results[1]


def test_settings_hold_from_cell_to_cell(tell: Callable[[Story], None], base: Path) -> None:
    async def story(engine: EngineSupervisor, person: Person) -> None:
        await create(engine, base)
        await person.run("import torch; torch.set_default_dtype(torch.float64)")
        await person.run("torch.set_grad_enabled(False); torch.manual_seed(5)")
        await ask(engine, ops.ForwardBackward("run", request(samples(0))))
        await ask(engine, STEP)
        seen = await person.printed("print(torch.rand(2), torch.is_grad_enabled())")
        assert "dtype=torch.float64" not in seen, "it is the default"
        expected = "torch.set_default_dtype(torch.float64); torch.manual_seed(5)"
        assert seen == await person.printed(f"{expected}; print(torch.rand(2), False)")

    tell(story)


def test_an_interrupt_stops_the_cell_and_nothing_else(
    tell: Callable[[Story], None], base: Path
) -> None:
    async def story(engine: EngineSupervisor, person: Person) -> None:
        await create(engine, base)
        cell = person.begin("while True: pass")
        await until(lambda: engine.cell_seconds is not None)
        waiting = asyncio.create_task(ask(engine, STEP))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert engine.manager is not None
        await engine.manager.interrupt_kernel()
        assert (await cell)["content"]["ename"] == "KeyboardInterrupt"
        assert (await waiting)["step"] == 1
        await until(lambda: engine.cell_seconds is None)
        assert "1" in await person.printed("print(engine.runs['run'].step)")

    tell(story)


def test_an_interrupt_during_an_operation_drops_the_cells_behind_it(
    tell: Callable[[Story], None], base: Path, tmp_path: Path
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"

    async def story(engine: EngineSupervisor, person: Person) -> None:
        await create(engine, base)
        await person.run(_SLOW_STEP.format(gate=str(gate), begun=str(begun)))
        step = asyncio.create_task(ask(engine, STEP))
        await until(begun.exists)
        dropped = person.begin("dropped = False")
        behind = asyncio.create_task(ask(engine, STEP))
        await asyncio.sleep(0.3)
        assert engine.manager is not None
        await engine.manager.interrupt_kernel()
        await asyncio.sleep(0.1)
        assert not step.done()
        gate.touch()
        assert (await step)["step"] == 1
        assert (await behind)["step"] == 2
        assert (await dropped)["content"]["status"] == "aborted"
        assert await person.printed("print('dropped' in globals())") == "False\n"

    tell(story)


def test_what_a_cell_prints_goes_to_the_person_alone(
    tell: Callable[[Story], None], base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def story(engine: EngineSupervisor, person: Person) -> None:
        await create(engine, base)
        code = "import os, sys; print('out'); print('err', file=sys.stderr); os.system('echo sub')"
        assert set((await person.printed(code)).split()) >= {"out", "err"}
        await ask(engine, STEP)
        assert "1" in await person.printed("print(engine.runs['run'].step)")
        of_operations = {
            message["msg_type"]
            for message in person.published
            if message["parent_header"].get("msg_type") == ops.REQUEST
        }
        # Progress is told of what takes long, and seldom.
        assert of_operations <= {MESSAGE}, "a closed notebook's server would keep all of it"

    tell(story)
    heard = capfd.readouterr()
    assert "out" not in heard.out
    assert "err" not in heard.err


def test_nothing_computes_beside_the_shell_channel(
    tell: Callable[[Story], None], base: Path
) -> None:
    async def story(engine: EngineSupervisor, person: Person) -> None:
        info = (await person.ask(person.client.kernel_info()))["content"]
        assert info["supported_features"] == []
        assert "`engine`" in info["banner"]
        session, control = person.client.session, person.client.control_channel
        for kind, content in [
            ("execute_request", {"code": "sneaked = True", "silent": False}),
            ("create_subshell_request", {}),
            ("tinker_request", {"op": "status"}),
            ("kernel_info_request", {}),
        ]:
            control.send(session.msg(kind, content))
        answer = await control.get_msg(timeout=30)
        assert answer["msg_type"] == "kernel_info_reply"
        assert await person.printed("print('sneaked' in globals())") == "False\n"

    tell(story)


def test_who_dies_of_a_cell_is_not_to_blame(
    tell: Callable[[Story], None], base: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    cell = f"import os, pathlib\nwhile not pathlib.Path({str(gate)!r}).exists(): pass\nos._exit(1)"

    async def story(engine: EngineSupervisor, person: Person) -> None:
        await create(engine, base)
        person.begin(cell)
        await until(lambda: engine.cell_seconds is not None)
        waiting = asyncio.create_task(ask(engine, STEP))
        await until(lambda: engine.operating)
        gate.touch()
        with pytest.raises(EngineDied) as died:
            await waiting
        assert not died.value.during
        assert engine.cell_seconds is None
        # The next one has the same address and key: who was connected is again.
        await create(engine, base)
        await ask(engine, STEP)
        assert await person.printed("print(engine.runs['run'].step)") == "1\n"

    tell(story)
