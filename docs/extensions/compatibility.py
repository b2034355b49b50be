"""The directive `compatibility-table`: what the tests of the protocol ask, and how it is read."""

from __future__ import annotations

from collections.abc import Iterator

from docutils import nodes
from generated import parsed
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tests.protocol.test_routes import FUTURES, ROUTES


def table() -> str:
    """A row for each route, in Markdown."""
    rows = sorted(_rows(), key=lambda row: row[0].split(" ", 1)[1])
    body = (f"| `{route}` | {'' if kind is None else f'`{kind}`'} |" for route, kind in rows)
    return "\n".join(("| route | read by the SDK as |", "|---|---|", *body))


def _rows() -> Iterator[tuple[str, str | None]]:
    for line, _, kind in ROUTES.values():
        yield line.partition("?")[0], None if kind is None else kind.__name__
    for route, kind in FUTURES.items():
        yield f"POST {route}", kind.__name__


class CompatibilityTable(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return parsed(self, table(), "compatibility")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("compatibility-table", CompatibilityTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
