"""The engine's process: an IPython kernel that also answers operations.

Started by the server's supervisor with a connection file. `tinker_request` messages come in on the
shell channel beside `execute_request`, so operations and attached notebooks take turns. In the
kernel's namespace the engine is called `engine`. Knows nothing of HTTP, queues or the database.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from ..wire import ops
from ..wire.progress import MESSAGE, Progress
from .progress import Sparing

Answer = tuple[dict[str, Any], list[bytes]]
_log = logging.getLogger("jupyter_tinker.engine")


class TinkerKernel(IPythonKernel):
    """IPython plus the one message of `wire.ops`."""

    implementation = "jupyter_tinker"
    msg_types = [*IPythonKernel.msg_types, ops.REQUEST]  # noqa: RUF012 (ipykernel's convention)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Imported here, after the channels are open: torch takes seconds, and the server can
        # already see that the kernel lives.
        from .engine import Engine

        self.engine = Engine()
        assert self.shell is not None
        self.shell.user_ns["engine"] = self.engine

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
        reply = _reply(content, lambda: self.engine.perform(ops.decode(content, buffers)))
        seconds = time.perf_counter() - started
        if isinstance(reply, Future):
            reply.add_done_callback(send_later)
        else:
            send(reply)


def _reply(content: dict[str, Any], work: Callable[[], Answer | Future[Answer]]) -> Any:
    """What to answer an operation: content and buffers, or the future of what is not yet done."""
    try:
        answer = work()
    except ops.OpError as error:
        return _failure(error.message, error.category), []
    except KeyboardInterrupt:
        return _failure("the operation was interrupted at the engine", "server"), []
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
