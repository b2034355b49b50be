"""Watches the events of a server over so many connections until the step with the id LAST came to
all; then prints what came as JSON. Imports little, so as to be quick itself.

    python -m tests.bench.watchers PORT TOKEN CONNECTIONS LAST
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

_STEP = re.compile(rb'^id: (\d+)\nevent: step\ndata: .*?"time": ([0-9.]+)', re.MULTILINE)


async def _watch(port: int, token: str, last: int) -> tuple[list[int], list[float]]:
    """The ids, and the seconds from each step to its arrival."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    request = f"GET /tinker/events?after=0&token={token} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
    writer.write(request.encode())
    ids: list[int] = []
    delays: list[float] = []
    rest = b""
    while not ids or ids[-1] < last:
        part = await reader.read(2**20)
        assert part, "the stream ended early"
        now = time.time()
        whole, blank, rest = (rest + part).rpartition(b"\n\n")
        for match in _STEP.finditer(whole + blank):
            ids.append(int(match[1]))
            delays.append(now - float(match[2]))
    writer.close()
    return ids, delays


async def _main(port: int, token: str, connections: int, last: int) -> None:
    found = await asyncio.gather(*(_watch(port, token, last) for _ in range(connections)))
    whole = all(ids == list(range(1, last + 1)) for ids, _ in found)
    delays = sorted(delay for _, delays in found for delay in delays)
    print(json.dumps({"whole": whole, "delays": delays[::connections]}))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
