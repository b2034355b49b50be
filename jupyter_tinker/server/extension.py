"""The Jupyter server extension: configuration, start and stop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_data_dir
from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Float, Integer, Unicode

from .. import __version__
from .attach import Attach
from .catalog import Catalog
from .database import Database, default_url
from .event_bus import JupyterEventBus
from .events import EventLimits
from .handlers import HANDLERS
from .parts import Limits
from .sampling import SamplingLimits
from .service import TinkerService
from .supervisor import EngineSupervisor


class TinkerExtension(ExtensionApp):
    """Serves the Tinker API under `<base_url>/tinker`."""

    name = "jupyter_tinker"
    app_name = "Tinker"
    description = "Tinker, the training API, on a Jupyter server."
    version = __version__
    extension_url = "/tinker/"
    load_other_extensions = False
    open_browser = False
    classes = [Catalog, EngineSupervisor]  # noqa: RUF012 (traitlets' convention)

    state_dir = Unicode(
        config=True,
        help="""Where runs, checkpoints, keys and pulled models are kept.
        Default: the folder "tinker" in Jupyter's data directory.""",
    )
    database_url = Unicode(
        config=True,
        help="""SQLAlchemy URL of the database of runs, requests, steps, checkpoints and keys.
        Default: SQLite in the state directory.""",
    )
    engine_at_start = Bool(
        None,
        allow_none=True,
        config=True,
        help="""Whether the engine starts with the server, so that the first client need not wait
        for its imports, which take some seconds and 300 MB. Default: with `jupyter tinker`, but
        not on a server of notebooks, where it starts with the first run or sample.""",
    )
    lora_alpha = Float(
        32.0,
        config=True,
        help="""LoRA alpha of new runs, which the API does not let clients choose; an adapter's
        output is scaled by alpha / rank.""",
    )
    hold_seconds = Float(
        30.0,
        min=0.0,
        max=40.0,
        config=True,
        help="""For how many seconds `retrieve_future` waits for a result before it tells the
        client to ask again. The SDK itself gives up at 45.""",
    )
    seq_gap_seconds = Float(
        300.0,
        config=True,
        help="""For how many seconds a run waits for a request number that was left out before it
        fails the requests behind it.""",
    )
    keep_results_seconds = Float(
        3600.0,
        config=True,
        help="""For how many seconds a result is kept after it was fetched. Those of a run's last 16
        forward_backward stay, so that their tokens can be looked at.""",
    )
    keep_unfetched_seconds = Float(
        7 * 86_400.0,
        min=60.0,
        config=True,
        help="""For how many seconds a result is kept that nobody fetches. A client that comes for
        it later is told that it is gone.""",
    )
    max_body_bytes = Integer(
        256 * 2**20,
        config=True,
        help="""Largest request body in bytes, before and after decompression. The SDK cuts a batch
        into bodies of about 5 MB, but sends a larger datum whole.""",
    )

    sampling_share = Float(
        0.5,
        min=0.05,
        max=0.95,
        config=True,
        help="""Part of the engine's time that sampling gets while training wants it too; training
        gets the rest. Either has all of it while the other wants none.""",
    )
    max_engine_samples = Integer(
        512,
        min=1,
        config=True,
        help="""Most sequences of one base model or checkpoint that the engine is given to sample;
        further requests wait their turn. A request that alone asks for more is still done.""",
    )
    max_loaded_samplers = Integer(
        16,
        min=1,
        config=True,
        help="""Most base models and checkpoints that the engine holds ready to be sampled from. The
        one used least recently makes room, and is loaded again when it is needed.""",
    )
    max_unnamed_samplers = Integer(
        8,
        min=1,
        config=True,
        help="""Most copies of a run's weights, made by save_weights_and_get_sampling_client, that
        the engine keeps. The ones used least recently are dropped; they cannot be loaded again.""",
    )
    abandoned_seconds = Float(
        120.0,
        min=1.0,
        config=True,
        help="""For how many seconds a sample goes on that nobody asks for. It is then given up; a
        client that comes back samples it again.""",
    )

    max_watchers = Integer(
        200,
        min=1,
        config=True,
        help="""Most connections that may follow the stream of events at a time.""",
    )
    watcher_stall_seconds = Float(
        30.0,
        min=0.1,
        config=True,
        help="""For how many seconds a connection that follows the stream of events may take nothing
        of what is sent. It is then cut; a client that connects again goes on where it was.""",
    )

    session_expiry_seconds = Float(
        3600.0,
        min=1.0,
        config=True,
        help="""For how many seconds a client may be silent until its runs leave the engine's
        memory. They are kept, and come back with the client's next request.""",
    )
    history_bytes = Integer(
        20 * 2**30,
        min=0,
        config=True,
        help="""Most bytes that the histories of all runs may take: snapshots, and the data of
        steps, of which a run is revived and rewound. Beyond, the oldest of the run that was
        used least recently goes first, then all of runs that have ended; checkpoints never.""",
    )
    snapshot_overhead = Float(
        0.03,
        min=0.001,
        config=True,
        help="""Part of the time that a run computes which its snapshots may take. More makes them
        more frequent, and shortens what is computed again after the engine died.""",
    )

    def _config_file_name_default(self) -> str:
        return "jupyter_tinker_config"

    def _state_dir_default(self) -> str:
        return os.path.join(jupyter_data_dir(), "tinker")

    def _database_url_default(self) -> str:
        return default_url(Path(self.state_dir))

    def initialize_settings(self) -> None:
        state_dir = Path(self.state_dir)
        catalog = Catalog(parent=self)
        self.service = TinkerService(
            database=Database(self.database_url),
            state_dir=state_dir,
            catalog=catalog,
            supervisor=EngineSupervisor(parent=self),
            limits=Limits(
                seq_gap=self.seq_gap_seconds,
                keep_results=self.keep_results_seconds,
                keep_unfetched=self.keep_unfetched_seconds,
                session_expiry=self.session_expiry_seconds,
                snapshot_overhead=self.snapshot_overhead,
                history_bytes=self.history_bytes,
            ),
            sampling_limits=SamplingLimits(
                max_samples=self.max_engine_samples,
                max_samplers=self.max_loaded_samplers,
                max_copies=self.max_unnamed_samplers,
                abandoned=self.abandoned_seconds,
            ),
            sampling_share=self.sampling_share,
            lora_alpha=self.lora_alpha,
            log=self.log,
            event_limits=EventLimits(self.max_watchers, self.watcher_stall_seconds),
        )
        self.attach = Attach(
            getattr(self.serverapp, "kernel_manager", None),
            self.service.supervisor,
            self.service.lives.let_go,
            self.log,
        )
        if self.serverapp is not None and self.serverapp.event_logger is not None:
            self.service.events.bus = JupyterEventBus(self.serverapp.event_logger, self.log)
        self.settings["tinker_service"] = self.service
        self.settings["tinker_extension"] = self

    def initialize_handlers(self) -> None:
        self.handlers.extend(HANDLERS)

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        alone = serverapp.starter_app is self
        early = alone if self.engine_at_start is None else self.engine_at_start
        self.service.start(serverapp.connection_url, engine=early)
        if alone:
            print(_exports(serverapp), flush=True)

    async def stop_extension(self) -> None:
        await self.attach.close()
        await self.service.stop()


def _exports(serverapp: Any) -> str:
    """What a client's shell needs."""
    url = f"{serverapp.connection_url.rstrip('/')}/tinker"
    token = serverapp.identity_provider.token or "no-token-is-asked-for"
    return f"export TINKER_BASE_URL={url}\nexport TINKER_API_KEY=tml-{token}"
