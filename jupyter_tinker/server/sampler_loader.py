"""Which samplers are at the engine: loads those that jobs need, and makes room for them.

Knows nothing of how samples are made, nor of the order in which jobs come.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from ..wire import sampling
from ..wire.ops import OpError
from .engine_client import EngineDied
from .loaded import LoadedSamplers
from .open_jobs import OpenJobs
from .samplers import Target
from .sampling_engine import SamplingEngine


class SamplerLoader:
    """Keeps what is `loaded` and what the engine holds the same.

    `revive` makes a copy of a run's weights again, and raises `OpError`. `wake` is called when
    there is something to do.
    """

    def __init__(
        self,
        engine: SamplingEngine,
        jobs: OpenJobs,
        loaded: LoadedSamplers,
        *,
        revive: Callable[[Target], Awaitable[None]],
        wake: Callable[[], None],
        log: Any,
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._loaded = loaded
        self._revive = revive
        self._wake = wake
        self._log = log
        self._reviving: dict[str, asyncio.Task[None]] = {}  # by the name of the sampler
        self.loading: Target | None = None  # what the engine loads now

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What is under way, beside the pump's own."""
        return list(self._reviving.values())

    def adopt(self, target: Target) -> None:
        """Know a copy of a run's weights that the engine, as it lives now, has just made."""
        self.see_engine()
        self._loaded.add(target)

    def unload(self, name: str) -> None:
        """Free a sampler's memory in the engine."""
        if self._loaded.remove(name):
            self._engine.add_chore(sampling.UnloadSampler(name))
            self._wake()

    def copies(self, run_id: str) -> list[str]:
        """The copies of a run's weights in the engine, least recently used first."""
        self.see_engine()
        return self._loaded.copies(run_id)

    def see_engine(self, why: str = "", *, guilty: bool = False) -> None:
        """Notice that the engine is another one, which holds nothing: neither samplers nor jobs.

        `guilty`: it was sampling when it died.
        """
        if self._engine.notice():
            self._loaded.clear()
            self._jobs.take_back(why, guilty=guilty)

    # Loading

    async def load(self, target: Target) -> bool:
        """Load a sampler, or fail its jobs; False if there is no room until another gets idle."""
        if target.run is not None:
            self._park(target)
            return True
        if target.checkpoint and not await asyncio.to_thread(os.path.isdir, target.checkpoint):
            self._jobs.give_up(target.name, OpError("The checkpoint of this sampler was deleted."))
            return True
        if not self._make_room():
            return False
        # What is to be unloaded goes first: it may be this very name.
        await self._engine.do_chores()
        await self._load(target)
        return True

    async def _load(self, target: Target) -> None:
        op = sampling.LoadSampler(
            target.name, target.base_model, target.base_path, target.checkpoint
        )
        self.loading = target
        try:
            await self._engine.ask(op)
        except OpError as error:
            self._jobs.give_up(target.name, error)
        except EngineDied as error:
            if error.during:
                self._jobs.count_death(target.name)
            raise
        else:
            self._loaded.add(target)
        finally:
            self.loading = None

    def _make_room(self) -> bool:
        """Whether one more sampler may be loaded; if need be, the least recently used goes."""
        if not self._loaded.full:
            return True
        busy = {job.target.name for job in self._jobs.held.values()}
        name = self._loaded.to_replace(busy, lambda name: self._jobs.pending(name) > 0)
        if name is not None:
            self.unload(name)
        return name is not None

    # Copies of a run's weights

    def _park(self, target: Target) -> None:
        """Let the jobs of a copy wait while it is made again, which takes turns of training."""
        self._jobs.park(target.name)
        if target.name not in self._reviving:
            task = asyncio.get_running_loop().create_task(self._make_again(target))
            self._reviving[target.name] = task

    async def _make_again(self, target: Target) -> None:
        failure: OpError | None = None
        try:
            await self._revive(target)
        except OpError as error:
            failure = error
        except EngineDied:
            pass  # the jobs go back to the line, and try again
        except Exception as error:
            self._log.exception("The weights of a sampler could not be made again.")
            failure = OpError(f"The server failed: {type(error).__name__}: {error}", "server")
        else:
            self.adopt(target)
        del self._reviving[target.name]
        self._jobs.unpark(target.name, failure)
        self._wake()
