"""The engine's process: an IPython kernel that also answers operations.

Started by the server's supervisor with a connection file. `tinker_request` messages come in on the
shell channel beside `execute_request`, so operations and attached notebooks take turns. In the
kernel's namespace the engine is called `engine`. Knows nothing of HTTP, queues or the database.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from ..wire import ops

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
        content, buffers = self._answer(parent["content"], parent.get("buffers", []))
        content["seconds"] = time.perf_counter() - started
        assert self.session is not None
        frames: Any = buffers
        self.session.send(stream, ops.REPLY, content, parent, ident=ident, buffers=frames)

    def _answer(
        self, content: dict[str, Any], buffers: list[Any]
    ) -> tuple[dict[str, Any], list[bytes]]:
        try:
            result, out = self.engine.handle(ops.decode(content, buffers))
        except ops.OpError as error:
            return _failure(error.message, error.category), []
        except KeyboardInterrupt:
            return _failure("the operation was interrupted at the engine", "server"), []
        except Exception as error:
            _log.exception("operation %r failed", content.get("op"))
            name = type(error).__name__
            return _failure(f"the engine failed: {name}: {error}"[:1000], "server"), []
        return {"ok": True, "result": result}, out


def _failure(message: str, category: ops.Category) -> dict[str, Any]:
    return {"ok": False, "error": message, "category": category}


def main() -> None:
    # IPython takes over standard error; what the engine logs belongs to the server's terminal.
    logging.basicConfig(stream=sys.__stderr__, format="[%(levelname)s engine] %(message)s")
    IPKernelApp.launch_instance(kernel_class=TinkerKernel)


if __name__ == "__main__":
    main()
