"""What is looked after from time to time: what is old, too much, or of clients that fell silent.

Knows nothing of requests, nor of what a client is told.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .checkpoints import Checkpoints
from .cleaning import Cleaning
from .events import Events
from .futures import Futures
from .lives import Lives
from .registry import Registry
from .sampling import Sampling
from .session_index import SessionIndex
from .traces import Traces

_TIDY_SECONDS = 30.0
_WEIGH_SECONDS = 300.0  # between two looks at what histories take


class Housekeeping:
    """Keeps to what a server may hold, and for how long; times in seconds.

    `abandoned`: for how long a sample goes on that nobody asks for. The others are as in
    `parts.Limits`.
    """

    def __init__(
        self,
        *,
        futures: Futures,
        checkpoints: Checkpoints,
        sampling: Sampling,
        traces: Traces,
        registry: Registry,
        session_index: SessionIndex,
        lives: Lives,
        events: Events,
        cleaning: Cleaning,
        keep_results: float,
        keep_unfetched: float,
        session_expiry: float,
        history_bytes: int,
        abandoned: float,
        log: Any,
    ) -> None:
        self._futures = futures
        self._checkpoints = checkpoints
        self._sampling = sampling
        self._traces = traces
        self._registry = registry
        self._session_index = session_index
        self._lives = lives
        self._events = events
        self._cleaning = cleaning
        self._keep_results = keep_results
        self._keep_unfetched = keep_unfetched
        self._session_expiry = session_expiry
        self._history_bytes = history_bytes
        self._abandoned = abandoned
        self._log = log
        self._weighed = 0.0

    async def tidy(self) -> None:
        """Drop what is kept no longer, again and again."""
        while True:
            await asyncio.sleep(min(_TIDY_SECONDS, self._session_expiry / 2))
            try:
                await self.tidy_results()
                await self._checkpoints.delete_expired()
                self._sampling.completions.tidy(self._keep_results)
                await asyncio.to_thread(self._traces.tidy)
                await self._unload_silent_runs()
                await self._keep_within_budget()
            except Exception:
                self._log.exception("Housekeeping failed; it is tried again.")

    async def tidy_results(self) -> None:
        await self._futures.tidy(self._keep_results, self._keep_unfetched)

    async def watch_clients(self) -> None:
        """Give up samples that nobody asks for any more, again and again."""
        while True:
            await asyncio.sleep(min(self._abandoned / 4, _TIDY_SECONDS))
            self._sampling.cancel_abandoned()

    async def _unload_silent_runs(self) -> None:
        """Free the memory of runs whose clients have not been heard of for long."""
        for run in self._registry:
            silent = self._session_index.silent_seconds(run.row.session_id)
            if silent > self._session_expiry and not run.lock.locked():
                async with run.lock:
                    if await self._lives.unload(run):
                        self._log.info("Run %s is unloaded; its client is silent.", run.id)
                        await self._events.emit(run.id, "run_unloaded", step=run.step)

    async def _keep_within_budget(self) -> None:
        if time.monotonic() - self._weighed < _WEIGH_SECONDS:
            return
        self._weighed = time.monotonic()
        await self._cleaning.keep_within(self._history_bytes)
