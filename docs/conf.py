"""Sphinx: `make docs` builds the site into build/docs/html."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "extensions")]

from jupyter_tinker import __version__  # noqa: E402

project = "jupyter_tinker"
author = "The jupyter_tinker developers"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.githubpages",
    "sphinx_copybutton",
    "sphinx_design",
    "compatibility",
    "traits_reference",
]
exclude_patterns = ["extensions"]
html_theme = "pydata_sphinx_theme"
html_title = "jupyter_tinker"
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "header_links_before_dropdown": 7,
}
html_sidebars = {"index": []}
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "fieldlist"]
# The tests run the notebooks; here they are read. They hold nothing but what a person runs.
nb_execution_mode = "off"

# Sphinx reads what lies below its own folder.
NOTEBOOKS = DOCS / "notebooks"
shutil.rmtree(NOTEBOOKS, ignore_errors=True)
shutil.copytree(ROOT / "notebooks", NOTEBOOKS, ignore=shutil.ignore_patterns(".*"))
