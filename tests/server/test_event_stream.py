"""The stream of events over real HTTP: who may watch, how it resumes, and that it holds a load."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from jupyter_tinker.server.event_bus import SCHEMAS
from jupyter_tinker.server.events import Events
from jupyter_tinker.server.handlers import events as handlers
from jupyter_tinker.server.service import TinkerService
from jupyter_tinker.wire.events import Event
from tests.server.sse import fields, parse, step_row
from tests.server.stored import add_run

pytest_plugins = ["pytest_jupyter.jupyter_server"]


@pytest.fixture
def service(jp_serverapp: Any, jp_asyncio_loop: Any) -> Iterator[TinkerService]:
    service: TinkerService = jp_serverapp.web_app.settings["tinker_service"]

    async def start() -> None:
        service.start("here")  # Jupyter's fixtures do not start extensions

    jp_asyncio_loop.run_until_complete(start())
    yield service
    jp_asyncio_loop.run_until_complete(service.events.close())


class Stream:
    """A connection that watches, read by hand: what is not asked for stays in the socket."""

    def __init__(self, reader: asyncio.StreamReader, head: str) -> None:
        self.reader = reader
        self.status = int(head.split()[1])
        self.headers = {k.lower(): v for k, v in fields(head.replace("\r\n", "\n")).items()}
        self.last_id = ""  # as EventSource keeps it

    async def block(self) -> str:
        """Up to the next blank line; empty at the end."""
        async with asyncio.timeout(60):
            try:
                block = (await self.reader.readuntil(b"\n\n")).decode()
            except asyncio.IncompleteReadError:
                return ""
        self.last_id = fields(block).get("id", self.last_id)
        return block

    async def events(self, upto: int = 2**62) -> list[Event]:
        """All events up to the id `upto`, or to the end."""
        found: list[Event] = []
        while (not found or found[-1].id < upto) and (block := await self.block()):
            if "event: dropped" not in block:
                found += parse(block.encode())
        return found


class Watch:
    """Opens streams as a given client would."""

    def __init__(self, port: int, path: str, token: str) -> None:
        self.port = port
        self.path = path
        self.token = token

    @asynccontextmanager
    async def __call__(
        self, query: str = "", *, small: bool = False, **headers: str
    ) -> AsyncIterator[Stream]:
        headers = {"Authorization": f"token {self.token}", **headers}
        lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items() if v)
        connection = socket.create_connection(("127.0.0.1", self.port))
        if small:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        # HTTP/1.0: the body comes as it is, without the marks of chunks.
        reader, writer = await asyncio.open_connection(sock=connection, limit=2**16)
        request = f"GET {self.path}{query} HTTP/1.0\r\nHost: 127.0.0.1:{self.port}\r\n{lines}\r\n"
        writer.write(request.encode())
        try:
            async with asyncio.timeout(20):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            yield Stream(reader, head)
        finally:
            writer.close()


@pytest.fixture
def watch(
    service: TinkerService,
    jp_serverapp: Any,
    http_server: Any,
    http_server_port: Any,
    jp_base_url: str,
) -> Watch:
    token = jp_serverapp.identity_provider.token
    return Watch(http_server_port[-1], f"{jp_base_url}tinker/events", token)


async def add_steps(events: Events, run: str, numbers: range) -> int:
    """Steps in one transaction; returns the last id."""

    def work(db: Any) -> int:
        return [events.record_step(db, step_row(run, number)).id for number in numbers][-1]

    return await events._db.call(work)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not done():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.01)


async def test_what_is_sent_is_an_event_stream(service: TinkerService, watch: Watch) -> None:
    await service.events.emit("a", "paused")
    async with watch() as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-cache, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert await stream.block() == "retry: 2000\nid: 1\n\n"
        event = await service.events.emit("a", "resumed", actor="me", step=2, x=[1])
        data = json.dumps(event.to_json())
        assert await stream.block() == f"id: 2\nevent: resumed\ndata: {data}\n\n"


@pytest.mark.parametrize(
    ("query", "header", "first"),
    [
        ("?after=0", "", 1),
        ("?after=2", "", 3),
        ("?after=0", "4", 5),  # a browser that connects again
        ("", "5", 6),
        ("", "", 6),
        ("?after=", "", 6),
        ("?after=99", "", 6),  # of a database that is no more
    ],
)
async def test_it_begins_where_the_client_wants(
    service: TinkerService, watch: Watch, query: str, header: str, first: int
) -> None:
    await add_steps(service.events, "a", range(1, 6))
    async with watch(query, Last_Event_ID=header) as stream:
        assert await stream.block() == f"retry: 2000\nid: {first - 1}\n\n"
        await service.events.emit("a", "paused")
        assert [event.id for event in await stream.events(6)] == list(range(first, 7))


async def test_what_happened_beside_the_steps_comes_in_pages(
    service: TinkerService, jp_fetch: Any
) -> None:
    run, other = (add_run(service, "s", number) for number in range(2))
    made = [await service.events.emit(run, "paused", reason=str(n)) for n in range(3)]
    await service.events.emit(other, "paused")
    await service.events.emit(None, "engine_died", reason="r")
    await service.events.emit(run, "guard", loss=float("inf"))

    async def page(**arguments: int) -> list[dict[str, Any]]:
        answer = await jp_fetch("tinker", "runs", run, "events", params=arguments)
        events: list[dict[str, Any]] = json.loads(answer.body)["events"]
        return events

    assert await page(limit=2) == [event.to_json() for event in made[:2]]
    last, guard = await page(after=made[1].id)
    assert last == made[2].to_json()
    assert guard["data"] == {"loss": None}


async def test_some_runs_can_be_watched(service: TinkerService, watch: Watch) -> None:
    runs = [add_run(service, "s", number) for number in range(3)]
    for run in runs:
        await add_steps(service.events, run, range(1, 3))
    await service.events.emit(None, "engine_died", reason="r")
    async with watch(f"?after=0&run={runs[2]}&run={runs[0]}") as stream:
        await service.events.emit(runs[1], "paused")
        await service.events.emit(runs[0], "paused")
        found = await stream.events(9)
    assert [(event.id, event.run_id) for event in found] == [
        (1, runs[0]),
        (2, runs[0]),
        (5, runs[2]),
        (6, runs[2]),
        (7, None),
        (9, runs[0]),
    ]


@pytest.mark.parametrize(
    ("query", "header", "status", "sentence"),
    [
        ("?run=no", "", 404, "There is no training run 'no'."),
        ("?run=", "", 404, "There is no training run"),
        ("?after=now", "", 400, "after must be the id of an event, and is 'now'."),
        ("?after=-1", "", 400, "after must be"),
        ("?after=%C2%B2", "", 400, "after must be"),
        ("", "x", 400, "Last-Event-ID must be"),
        ("?after=0", "9" * 40, 400, "Last-Event-ID must be"),
        ("?" + "&".join(f"run={n}" for n in range(101)), "", 400, "leave `run` out"),
    ],
)
async def test_what_cannot_be_watched_is_refused(
    watch: Watch, query: str, header: str, status: int, sentence: str
) -> None:
    async with watch(query, Last_Event_ID=header) as stream:
        assert stream.status == status
        detail = json.loads(await stream.reader.read())["detail"]
        assert sentence in detail


@pytest.mark.parametrize("traits", [{"max_watchers": 2}])
async def test_one_watcher_too_many_is_told_so(service: TinkerService, watch: Watch) -> None:
    async with watch() as one, watch() as two:
        assert (one.status, two.status) == (200, 200)
        async with watch() as three:
            assert three.status == 503
            assert "max_watchers" in json.loads(await three.reader.read())["detail"]
    await until(lambda: not service.events._watchers)
    async with watch() as stream:
        assert stream.status == 200


async def test_only_who_may_watches(
    service: TinkerService, watch: Watch, jp_serverapp: Any, jp_base_url: str
) -> None:
    """EventSource sends no headers: what a browser has are cookies and the URL."""
    token = jp_serverapp.identity_provider.token
    key = service.keys.create("laptop")
    cookie = await _login(watch, jp_base_url)
    for query, headers, status in (
        (f"?token={token}", {"Authorization": ""}, 200),
        ("", {"Authorization": "", "Cookie": cookie}, 200),
        ("", {"Authorization": "", "X_API_Key": key}, 200),
        ("", {"Authorization": "", "X_API_Key": f"tml-{token}"}, 200),
        ("?token=wrong", {"Authorization": ""}, 401),
        ("", {"Authorization": ""}, 401),
        ("", {"Authorization": "", "Cookie": cookie.replace("=", "=x")}, 401),
        ("", {"Authorization": "", "X_API_Key": key + "x"}, 401),
        # A page of another origin, with the cookies of this one.
        ("", {"Authorization": "", "Cookie": cookie, "Origin": "https://evil.example"}, 404),
    ):
        async with watch(query, **headers) as stream:
            assert stream.status == status, (query, headers)


async def _login(watch: Watch, base_url: str) -> str:
    """The cookies that a browser has once it was opened with the token in its URL."""
    page = Watch(watch.port, f"{base_url}login", "")
    async with page(f"?token={watch.token}", Authorization="") as answer:
        name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
    return f"{name}={value}"


async def test_silence_is_broken_by_heartbeats(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "_HEARTBEAT_SECONDS", 0.05)
    async with watch() as stream:
        await stream.block()
        for _ in range(3):
            assert await stream.block() == "event: heartbeat\ndata: {}\n\n"
        assert stream.last_id == "0"


async def test_it_ends_with_the_server_and_with_the_client(
    service: TinkerService, watch: Watch
) -> None:
    async with watch() as gone:
        await gone.block()
    await until(lambda: not service.events._watchers)
    async with watch() as stream:
        await stream.block()
        await service.events.close()
        assert await stream.block() == ""
        assert not service.events._watchers
        async with watch() as late:
            assert late.status == 503


async def test_chunks_are_as_http_wants_them(
    service: TinkerService, jp_fetch: Any, watch: Watch
) -> None:
    """The same through a client of HTTP/1.1, which keeps the connection."""
    body = bytearray()
    asking = asyncio.ensure_future(
        jp_fetch(
            "tinker", "events", params={"after": 0}, streaming_callback=body.extend, headers={}
        )
    )
    await add_steps(service.events, "a", range(1, 300))
    await until(lambda: b"id: 299\n" in body)
    await service.events.close()
    assert (await asking).code == 200
    assert [event.id for event in parse(bytes(body))] == list(range(1, 300))


async def test_jupyters_bus_is_told_by_the_server(
    service: TinkerService, jp_serverapp: Any
) -> None:
    heard: list[dict[str, Any]] = []

    async def listen(logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        heard.append(data)

    logger = jp_serverapp.event_logger
    logger.add_listener(schema_id=SCHEMAS["run_created"], listener=listen)
    event = await service.events.emit("a", "run_created", actor="me")
    await until(lambda: bool(heard))
    assert heard == [event.to_json()]


# Under load

_RUNS = 50
_STEPS = 60  # of each run
_ALL = 16  # watchers of everything; each of four more watches some runs


async def test_thousands_of_steps_reach_all_watchers(service: TinkerService, watch: Watch) -> None:
    events = service.events
    events.limits = replace(events.limits, ring_bytes=2**19)
    runs = [add_run(service, "s", number) for number in range(_RUNS)]
    last = _RUNS * _STEPS + _STEPS

    async def follow(query: str) -> list[Event]:
        async with watch(query) as stream:
            return await stream.events(last)

    some = ["".join(f"&run={run}" for run in [*runs[n::4], runs[-1]]) for n in range(4)]
    following = [asyncio.ensure_future(follow(f"?after=0{q}")) for q in [""] * _ALL + some]
    largest = await _train(events, runs)
    all_runs = await asyncio.gather(*following[:_ALL])
    for found in all_runs:
        assert [event.id for event in found] == list(range(1, last + 1))
        assert found == all_runs[0]
    steps = [event for event in all_runs[0] if event.kind == "step"]
    for run in runs:
        made = [event.step for event in steps if event.run_id == run]
        assert made == list(range(1, _STEPS + 1))
    for query, task in zip(some, following[_ALL:], strict=True):
        mine = [event for event in all_runs[0] if f"run={event.run_id}" in query.split("&")]
        assert await task == mine
    assert 0 < largest <= 2**19
    assert sum(len(json.dumps(event.to_json())) for event in all_runs[0]) > 2**20


async def _train(events: Events, runs: list[str]) -> int:
    """A thousand steps a second, each in a transaction of its own, and an event now and then;
    returns the most that the ring held, in bytes."""
    loop = asyncio.get_running_loop()
    began, largest = loop.time(), 0
    for step in range(1, _STEPS + 1):
        rows = [add_steps(events, run, range(step, step + 1)) for run in runs]
        await asyncio.gather(*rows)
        await events.emit(runs[-1], "checkpoint_saved", step=step, path="p")
        await asyncio.sleep(began + step * len(runs) / 1000 - loop.time())
        largest = max(largest, events._ring.size if events._ring else 0)
    return largest


@pytest.mark.parametrize("traits", [{"watcher_stall_seconds": n} for n in (0.5, 5.0)])
async def test_a_watcher_that_stops_reading_is_dropped_and_comes_back(
    service: TinkerService, watch: Watch, caplog: pytest.LogCaptureFixture, traits: dict[str, Any]
) -> None:
    events = service.events
    patience = traits["watcher_stall_seconds"]
    last = 3000  # some 2 MB: more than the sockets hold

    async def follow() -> list[int]:
        async with watch("?after=0") as stream:
            return [event.id for event in await stream.events(last)]

    others = [asyncio.ensure_future(follow()) for _ in range(2)]
    async with watch("?after=0", small=True) as stalled:
        blocks = [await stalled.block()]
        for start in range(0, last, 100):
            await add_steps(events, "a", range(start + 1, start + 101))
        await until(lambda: "was dropped" in caplog.text)
        in_time = patience > 1
        if not in_time:
            await asyncio.sleep(3 * patience)  # now the connection is cut
        while block := await stalled.block():
            blocks.append(block)
    assert await asyncio.gather(*others) == [list(range(1, last + 1))] * 2
    last_words = [fields(block)["data"] for block in blocks if "event: dropped" in block]
    reasons = [json.loads(words) for words in last_words]
    told = {"reason": f"The connection took nothing for {patience:g} seconds."}
    assert reasons == [told] or (not in_time and not reasons)
    seen = [event.id for event in parse("".join(b for b in blocks if "dropped" not in b).encode())]
    assert 0 < len(seen) < last, "it must have been dropped on the way"
    async with watch("?after=0", Last_Event_ID=stalled.last_id) as stream:
        seen += [event.id for event in await stream.events(last)]
    assert seen == list(range(1, last + 1))
