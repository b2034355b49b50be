"""Asks a server for `/api/status` every 20 ms over one connection until its standard input closes;
then prints the seconds that each answer took as JSON. Imports little, so as to be quick itself.

    python -m tests.bench.poller PORT TOKEN
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time

_PERIOD = 0.02


def main() -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    headers = {"Authorization": f"token {sys.argv[2]}"}
    closed = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        closed.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    seconds = []
    due = time.perf_counter()
    while not closed.is_set():
        started = time.perf_counter()
        connection.request("GET", "/api/status", headers=headers)
        answer = connection.getresponse()
        answer.read()
        seconds.append(time.perf_counter() - started)
        assert answer.status == 200, answer.status
        due = max(due + _PERIOD, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
