"""What the directives that write pages have in common."""

from __future__ import annotations

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def parsed(directive: SphinxDirective, markdown: str, source: str) -> list[nodes.Node]:
    """Markdown as if it stood where the directive does."""
    container = nodes.container()
    lines = StringList(markdown.splitlines(), source=source)
    directive.state.nested_parse(lines, directive.content_offset, container, match_titles=True)
    return container.children
