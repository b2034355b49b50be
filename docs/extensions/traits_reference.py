"""The directive `traits-reference`: every setting, as the classes that have them say."""

from __future__ import annotations

import inspect
import math
import textwrap
from typing import Any

from docutils import nodes
from generated import parsed
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from traitlets import HasTraits, TraitType

from jupyter_tinker.server.extension import TinkerExtension


def configured() -> list[type[HasTraits]]:
    """The classes with settings of ours, the extension first."""
    return [TinkerExtension, *TinkerExtension.classes]


def settings_of(cls: type[HasTraits]) -> dict[str, TraitType[Any, Any]]:
    """The settings that a class itself has, without what Jupyter's own classes bring."""
    own = cls.class_own_traits(config=True)
    return {name: trait for name, trait in sorted(own.items()) if trait.help}


def reference() -> str:
    """A section for each class, in Markdown."""
    return "\n".join(_section(cls) for cls in configured())


def _section(cls: type[HasTraits]) -> str:
    summary = inspect.getdoc(cls) or ""
    entries = (_entry(cls, name, trait) for name, trait in settings_of(cls).items())
    return "\n".join((f"## {cls.__name__}", "", summary, "", *entries))


def _entry(cls: type[HasTraits], name: str, trait: TraitType[Any, Any]) -> str:
    help_text = textwrap.dedent(str(trait.help)).strip()
    about = [type(trait).__name__]
    default = trait.default_value_repr()
    if default not in ("traitlets.Undefined", "''", "None"):
        about.append(f"default `{default}`")
    for bound in ("min", "max"):
        if math.isfinite(value := getattr(trait, bound, None) or math.inf):
            about.append(f"{bound} `{value}`")
    return f"### {name}\n\n`c.{cls.__name__}.{name}`\n\n{help_text}\n\n*{', '.join(about)}*\n"


class TraitsReference(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        return parsed(self, reference(), "traits")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("traits-reference", TraitsReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
