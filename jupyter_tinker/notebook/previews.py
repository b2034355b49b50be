"""What a run is asked while it trains, and what it answered, for people and their tables."""

from __future__ import annotations

import time
from typing import Any

from .client import Client, RequestFailed, run_path

_EVERY = 0.2  # seconds, between two looks for an answer
# Of what the server says of a setting, what may be set.
_FIELDS = ("prompts", "every", "max_tokens", "temperature", "seed", "chat")


def change(client: Client, run_id: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Set some of a run's setting, and leave the others as they are. Raises `RequestFailed`."""
    path = f"{run_path(run_id)}/preview"
    known = client.get(path)
    setting: dict[str, Any] = client.put(path, {name: known[name] for name in _FIELDS} | fields)
    return setting


def now(client: Client, run_id: str) -> dict[str, Any]:
    """Ask a run now, and wait for what it answers. Raises `RequestFailed`."""
    known = max((one["id"] for one in rounds(client, run_id)), default=0)
    client.post(f"{run_path(run_id)}/preview", {})
    while True:
        going = client.get(f"{run_path(run_id)}/preview")["sampling"] is not None
        for one in rounds(client, run_id, known):
            if one["actor"] is not None:  # a person's
                return one
        if not going:
            raise RequestFailed("The server ended before the prompts were answered; ask again.")
        time.sleep(_EVERY)


def rounds(client: Client, run_id: str, after: int = 0) -> list[dict[str, Any]]:
    """All that a run answered, oldest first; with `after`, what has an `id` above it."""
    found: list[dict[str, Any]] = []
    while page := client.get(f"{run_path(run_id)}/previews?after={after}")["previews"]:
        found += page
        after = page[-1]["id"]
    return found


def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each answer, by its step, branch and prompt."""
    return [
        {
            "step": one["step"],
            "branch": one["branch"],
            "prompt": answer["prompt"],
            "text": answer["text"],
            "tokens": answer["tokens"],
            "end": answer["end"],
            "error": one["error"] or answer["error"],
            "time": one["time"],
        }
        for one in found
        for answer in one["answers"]
    ]


def words(one: dict[str, Any]) -> str:
    """What a run answered, as lines for a terminal."""
    head = f"step {one['step']}" + (f" of branch {one['branch']}" if one["branch"] else "")
    if one["error"]:
        return f"{head}: {one['error']}"
    said = [
        f"> {answer['prompt']}\n{answer['error'] or answer['text']}" for answer in one["answers"]
    ]
    return "\n\n".join([head, *said])
