"""Follows what happens on a server: Server-Sent Events, gone on with where a connection broke."""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple

from .client import Client, RequestFailed

# A server says something at least this often, if only that it is there.
_SILENCE = 90.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
# Statuses of servers that are starting, restarting or behind a proxy that waits for them.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


def follow(
    client: Client,
    runs: Sequence[str] = (),
    after: int | None = None,
    *,
    patience: float = 300.0,
    progress: bool = False,
) -> Iterator[dict[str, Any]]:
    """Events of some runs, or of all, as they happen, each once; it does not end by itself.

    `after` is the id of the last event that is known: what happened since comes first. None is from
    now on. Where the connection breaks it is made anew. With `progress` also how far long work is:
    events of that kind, without an id, and of each task only what is newest. Raises
    `RequestFailed` if the server refuses, does not answer the first time, or then for `patience`
    seconds.
    """
    path = "events" + "".join(
        f"{'&' if number else '?'}run={urllib.parse.quote(run, safe='')}"
        for number, run in enumerate(runs)
    )
    last, heard, pause = after, None, _FIRST_PAUSE
    going: dict[int, dict[str, Any]] = {}  # tasks that were told of and are not over
    while True:
        began = time.monotonic()
        try:
            for frame in _connection(client, path, last):
                heard = time.monotonic()
                last = frame.id if frame.id is not None else last
                if frame.id is not None and frame.data:
                    pause = _FIRST_PAUSE
                    yield json.loads(frame.data)
                elif frame.id is None and not frame.data:  # a new connection tells of all anew
                    yield from [_over(told) for told in going.values()]
                    going.clear()
                elif progress and frame.event == "progress":
                    told = json.loads(frame.data)
                    going[told["data"]["task"]] = told
                    if told["data"]["over"]:
                        del going[told["data"]["task"]]
                    yield told
        except RequestFailed as error:
            passing = error.status is None or error.status in _PASSING
            if not passing or heard is None or time.monotonic() - heard > patience:
                raise
        except (OSError, HTTPException, ValueError):
            pass  # broken while it was read
        if time.monotonic() - began > _LONGEST_PAUSE:
            pause = _FIRST_PAUSE  # it was quiet, and not failing
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _over(told: dict[str, Any]) -> dict[str, Any]:
    return {**told, "data": {"task": told["data"]["task"], "over": True}}


def _connection(client: Client, path: str, last: int | None) -> Iterator[Frame]:
    """The frames of one connection; the first, for being connected, is empty."""
    with open_stream(client, path, last) as answer:
        yield Frame(None, "")
        yield from parse(answer)


def open_stream(client: Client, path: str, last: int | None) -> HTTPResponse:
    """A stream of events behind `last`, or from now on; `parse` reads it. Raises
    `RequestFailed`."""
    headers = {"Accept": "text/event-stream"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    answer = client.open(path, headers=headers, timeout=_SILENCE)
    if answer.headers.get_content_type() != "text/event-stream":
        answer.close()
        raise RequestFailed(f"{client.url}/events is no stream of events.", answer.status)
    return answer


class Frame(NamedTuple):
    """One message of a stream: an event, the id that the next ones come behind, or a word of the
    server about the stream itself."""

    id: int | None
    data: str
    event: str = ""


def parse(lines: Iterable[bytes]) -> Iterator[Frame]:
    """The frames of a stream. One that was cut short is none."""
    number: int | None = None
    event = ""
    data: list[str] = []
    for line in lines:
        name, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "id" and value.isdecimal():
            number = int(value)
        elif name == "event":
            event = value
        elif not name and not line.strip():
            if data or number is not None:
                yield Frame(number, "\n".join(data), event)
            number, data, event = None, [], ""
