"""Which samples of a client are over, numbered, so that one poll can wait for all of them.

A client is told of a completion until it says that it knows of it, by the number it sends back.
Knows nothing of the results themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from .journal import Completion, Journal

# A client of a sampling session numbers its samples from its own number times this.
BLOCK = 10**9
_LARGEST_ANSWER = 1000  # completions; the rest comes with the next poll

Client = tuple[str, int]  # sampling session, number of the client


def client_of(sampler_id: str, seq_id: int) -> Client:
    """Whose sample it is."""
    return sampler_id, seq_id // BLOCK


class _Log:
    """The completions that one client has not acknowledged."""

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor
        self.entries: deque[tuple[int, Completion]] = deque()
        self.known: set[str] = set()
        self.changed = asyncio.Event()
        self.polls = 0
        self.polled = time.monotonic()

    def add(self, completion: Completion) -> None:
        if completion.request_id in self.known:
            return
        self.cursor += 1
        self.known.add(completion.request_id)
        self.entries.append((self.cursor, completion))
        self.changed.set()

    def acknowledge(self, cursor: int) -> None:
        while self.entries and self.entries[0][0] <= cursor:
            self.known.discard(self.entries.popleft()[1].request_id)
        self.cursor = max(self.cursor, cursor)

    def after(self, cursor: int) -> list[tuple[int, Completion]]:
        newer = (entry for entry in self.entries if entry[0] > cursor)
        return [entry for entry, _ in zip(newer, range(_LARGEST_ANSWER), strict=False)]

    async def wait(self, cursor: int, seconds: float) -> list[tuple[int, Completion]]:
        """What came after `cursor`, waiting for it."""
        until = time.monotonic() + seconds
        self.polls += 1
        try:
            while not (newer := self.after(cursor)):
                self.changed.clear()
                async with asyncio.timeout(max(until - time.monotonic(), 0)):
                    await self.changed.wait()
            return newer
        except TimeoutError:
            return []
        finally:
            self.polls -= 1
            self.polled = time.monotonic()


class Completions:
    """The logs of all clients that ask for them."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._logs: dict[Client, _Log] = {}

    def add(self, client: Client, completion: Completion) -> None:
        """Note that a sample is over. For a client that never asked, the journal knows it."""
        if (log := self._logs.get(client)) is not None:
            log.add(completion)

    async def poll(self, client: Client, cursor: int, hold: float) -> tuple[list[Completion], int]:
        """What is over since `cursor`, and the cursor behind it, waiting up to `hold` seconds."""
        log = self._logs.get(client)
        if log is None:
            log = self._logs[client] = _Log(cursor)
            sampler_id, number = client
            block = range(number * BLOCK, (number + 1) * BLOCK)
            for completion in await self._journal.unfetched(sampler_id, block):
                log.add(completion)
        log.acknowledge(cursor)
        newer = await log.wait(cursor, hold)
        return [completion for _, completion in newer], newer[-1][0] if newer else cursor

    def asked(self, client: Client) -> float:
        """When the client last asked, by the monotonic clock; 0 if it never did."""
        log = self._logs.get(client)
        if log is None:
            return 0.0
        return time.monotonic() if log.polls else log.polled

    def tidy(self, keep_seconds: float) -> None:
        """Drop the logs of clients that went silent; the journal still knows what they hold."""
        now = time.monotonic()
        for client, log in list(self._logs.items()):
            if not log.polls and now - log.polled > keep_seconds:
                del self._logs[client]
