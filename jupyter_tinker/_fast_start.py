"""Imported first by `jupyter tinker`: nearly halves the time until its server answers.

jupyter_events' jsonschema imports `rfc3987_syntax` where it is installed, which builds a grammar
for over a second, for the format "iri" alone. No event schema uses that format.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
