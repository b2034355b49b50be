"""The engine's process: an IPython kernel that also answers operations.

Started by the server's supervisor with a connection file. `tinker_request` messages come in on the
shell channel beside `execute_request`, so operations and attached notebooks take turns: a cell is
never at work while an operation is. In the kernel's namespace `engine` is an `inside.EngineView`.
Knows nothing of HTTP, queues or the database.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from ..wire import ops
from ..wire.progress import MESSAGE, Progress
from .progress import Sparing

Answer = tuple[dict[str, Any], list[bytes]]
_log = logging.getLogger("jupyter_tinker.engine")


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """While modules are imported, which stay: a sixth of the time would go into looking for garbage
    among them, again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class TinkerKernel(IPythonKernel):
    """IPython plus the one message of `wire.ops`."""

    implementation = "jupyter_tinker"
    msg_types = [*IPythonKernel.msg_types, ops.REQUEST]  # noqa: RUF012 (ipykernel's convention)
    # That channel has a thread of its own: what computes must not come in there, nor subshells,
    # which are threads, nor the debugger, which stops them all.
    control_msg_types = [  # noqa: RUF012
        "kernel_info_request",
        "connect_request",
        "interrupt_request",
        "shutdown_request",
        "usage_request",
    ]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cell_runs = False  # and may be interrupted
        self._operates = False
        self._drop_cells = False  # those that wait behind an operation
        signal.signal(signal.SIGINT, self._on_interrupt)
        # Imported here, after the channels are open: torch takes seconds, and the server can
        # already see that the kernel lives.
        with _nothing_collected():
            from .engine import Engine
            from .inside import EngineView
            from .settings import Apart

        self.engine = Engine()
        self._view = EngineView(self.engine)
        self._settings = Apart()
        assert self.shell is not None
        self.shell.user_ns["engine"] = self._view

    @property
    def kernel_info(self) -> dict[str, Any]:
        return {**super().kernel_info, "supported_features": []}

    @property
    def banner(self) -> str:  # type: ignore[override]
        return f"{super().banner}\nThis is the Tinker engine; `engine` shows what is in it.\n"

    async def tinker_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        content, buffers = parent["content"], parent.get("buffers", [])

        def send(answer: Answer) -> None:
            result, frames = answer
            assert self.session is not None
            out: Any = frames
            reply = {**result, "seconds": seconds}
            self.session.send(stream, ops.REPLY, reply, parent, ident=ident, buffers=out)

        def send_later(done: Future[Answer]) -> None:
            reply = _reply(content, done.result)
            with suppress(RuntimeError):  # the kernel has ended, and nobody waits any more
                loop.call_soon_threadsafe(send, reply)

        def tell(progress: Progress) -> None:
            # On IOPub: what goes on the shell channel is sent when the operation is done.
            assert self.session is not None
            told, topic = progress.to_json(), MESSAGE.encode()
            self.session.send(self.iopub_socket, MESSAGE, told, parent, ident=topic)

        self.engine.report = Sparing(tell)
        self._cell_runs, self._operates = False, True
        with self._settings.training():
            reply = _reply(content, lambda: self.engine.perform(ops.decode(content, buffers)))
        self._operates = False
        seconds = time.perf_counter() - started
        if isinstance(reply, Future):
            reply.add_done_callback(send_later)
        else:
            send(reply)

    async def do_execute(self, *arguments: Any, **more: Any) -> dict[str, Any]:
        """A person's cell. What it prints goes to the person, by the channel for that."""
        assert self.shell is not None
        self.shell.user_ns.setdefault("engine", self._view)  # `%reset` takes it away
        self._tell_of_cell(True)
        self._cell_runs = True
        try:
            return await super().do_execute(*arguments, **more)
        except KeyboardInterrupt as error:  # before or after the cell's own code
            return {
                "status": "error",
                "ename": type(error).__name__,
                "evalue": "",
                "traceback": [],
                "execution_count": self.shell.execution_count,
            }
        finally:
            self._cell_runs = False
            self._tell_of_cell(False)

    # Between cells and operations

    def pre_handler_hook(self) -> None:
        if self._is_persons(self.get_parent("shell")):
            self._settings.enter()

    def post_handler_hook(self) -> None:
        self._cell_runs = False
        if self._is_persons(self.get_parent("shell")):
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._view._tracer.tidy()
            self._settings.leave()
        elif self._drop_cells:
            self._drop_cells = False
            self._abort_queues()

    def _on_interrupt(self, *_: Any) -> None:
        """Interrupts cells, and never operations."""
        if self._cell_runs:
            raise KeyboardInterrupt
        self._drop_cells = self._operates

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        # Of operations nobody wants to know, and a notebook that is closed would have its server
        # keep them all.
        if not self._is_operation(parent or self.get_parent(channel)):
            super()._publish_status(status, channel, parent)

    def _tell_of_cell(self, runs: bool) -> None:
        if self.session is not None:
            self.session.send(
                self.iopub_socket,
                ops.CELL,
                {"runs": runs},
                parent=self.get_parent("shell"),
                ident=ops.CELL_TOPIC,
            )

    @staticmethod
    def _is_operation(message: dict[str, Any]) -> bool:
        return message.get("header", {}).get("msg_type") == ops.REQUEST

    @staticmethod
    def _is_persons(message: dict[str, Any]) -> bool:
        """Whether it may run a person's code. The server asks for the kernel's info, too."""
        kind = message.get("header", {}).get("msg_type")
        return kind not in (ops.REQUEST, "kernel_info_request", "connect_request")


def _reply(content: dict[str, Any], work: Callable[[], Answer | Future[Answer]]) -> Any:
    """What to answer an operation: content and buffers, or the future of what is not yet done."""
    try:
        answer = work()
    except ops.OpError as error:
        return _failure(error.message, error.category), []
    except Exception as error:
        _log.exception("operation %r failed", content.get("op"))
        name = type(error).__name__
        return _failure(f"the engine failed: {name}: {error}"[:1000], "server"), []
    if isinstance(answer, Future):
        return answer
    result, buffers = answer
    return {"ok": True, "result": result}, buffers


def _failure(message: str, category: ops.Category) -> dict[str, Any]:
    return {"ok": False, "error": message, "category": category}


def main() -> None:
    # IPython takes over standard error; what the engine logs belongs to the server's terminal.
    logging.basicConfig(stream=sys.__stderr__, format="[%(levelname)s engine] %(message)s")
    IPKernelApp.launch_instance(kernel_class=TinkerKernel)


if __name__ == "__main__":
    main()
