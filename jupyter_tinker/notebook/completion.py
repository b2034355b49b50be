"""What Tab offers behind `%tinker`: commands, runs, and what a command takes."""

from __future__ import annotations

import re

from IPython.core.completer import (
    CompletionContext,
    SimpleCompletion,
    SimpleMatcherResult,
    context_matcher,
)

from . import connection
from .client import RequestFailed
from .commands import Command
from .servers import running_servers
from .session import OWN
from .steering import COMMANDS

# Of a line up to the cursor: also `path = %tinker ...`, and without % where that can be left out.
_PLACE = re.compile(r"\s*([\w, ]+=\s*)?%?tinker\s")
_PATIENCE = 1.0  # seconds that a person who presses Tab may be kept waiting
_RUNS = 50


@context_matcher(identifier="jupyter_tinker")
def complete(context: CompletionContext) -> SimpleMatcherResult:
    """What may stand in the place of the word that is begun, and nothing of Python beside it."""
    line = context.text_until_cursor
    behind = _PLACE.match(line)
    if behind is None:
        return {"completions": []}
    *words, begun = line[behind.end() :].split(" ")
    offers = _offers([word for word in words if word])
    return {
        "completions": [SimpleCompletion(word) for word in offers if word.startswith(begun)],
        # IPython's own is what stands behind the last colon or slash; ids and URLs have some.
        "matched_fragment": begun,
        "ordered": True,
        "suppress": True,
    }


def _offers(words: list[str]) -> list[str]:
    """What may come behind these words."""
    if not words:
        return [*OWN, *COMMANDS, "--help"]
    name, *arguments = words
    command = OWN.get(name) or COMMANDS.get(name)
    if command is None:
        return []
    place = len([word for word in arguments if not word.startswith("--")])
    try:
        return [*_arguments(command, place, arguments), *_options(command)]
    except RequestFailed:
        return []


def _arguments(command: Command, place: int, arguments: list[str]) -> list[str]:
    match command.name:
        case "connect":
            return [f"{server['url']}tinker" for server in running_servers()] if not place else []
        case "key" if arguments == ["revoke"]:
            keys = connection.find().get("keys", timeout=_PATIENCE)["keys"]
            return [key["name"] for key in keys if not key["revoked_at"]]
        case "panel":
            return _runs()
        case "tokens":
            return [] if place else _runs()
    if command.name in COMMANDS:
        if place == 0:
            return _runs()
        place -= 1
    return list(command.words[place]) if place < len(command.words) else []


def _runs() -> list[str]:
    found = connection.find().get(f"runs?limit={_RUNS}", timeout=_PATIENCE)["runs"]
    return ["latest", *(run["run_id"] for run in found)]


def _options(command: Command) -> list[str]:
    return [*(f"--{option}" for option in command.options), "--help"]
