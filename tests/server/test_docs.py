"""docs/api.md names every route that exists."""

from __future__ import annotations

import re

from jupyter_tinker.server.handlers import HANDLERS
from tests.conftest import REPOSITORY


def test_every_route_is_documented() -> None:
    text = (REPOSITORY / "docs" / "api.md").read_text()
    told = {
        re.sub(r"\{\w+\}", "*", word.strip(".,"))
        for quoted in re.findall(r"`([^`]+)`", text)
        for word in quoted.split()
    }
    for pattern, *_ in HANDLERS:
        if "(?:/.*)?" in pattern:
            continue  # answers for what does not exist
        route = re.sub(r"\(\[\^/\]\+\)", "*", pattern.removesuffix("/?"))
        name = route.removeprefix("/tinker/").removeprefix("api/v1/")
        assert name in told, f"docs/api.md does not tell of {name}"
