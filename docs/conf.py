"""Sphinx: the documents, written by hand in MyST Markdown; tests/test_docs.py holds them to the code."""

import os
import sys
from pathlib import Path

import django
from docutils import nodes
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from django_moe_personalize import __version__

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()

project = "django-moe-personalize"
author = "django-moe-personalize contributors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
# Signatures name types of Python, of Django and of private modules.
nitpick_ignore_regex = [("py:.*", ".*")]
autodoc_member_order = "bysource"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False

ROWS = ("reference/settings", "reference/checks", "reference/errors")
"""In the tables of these pages each row gets an anchor, for example ``settings.html#cache-ttl``."""


def add_anchors(app: Sphinx, doctree: nodes.document) -> None:
    """Name each row after the code in its first cell, and let this code link to its row."""
    if app.env.docname not in ROWS:
        return
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for body in doctree.findall(nodes.tbody):
        for row in body.children:
            if code := next(row[0].findall(nodes.literal), None):
                anchor = nodes.make_id(code.astext().rpartition(".")[2])
                if anchor in slugs:
                    continue
                row["ids"].append(anchor)
                slugs[anchor] = (row.line or 0, anchor, code.astext())
                code.replace_self(nodes.reference("", "", code.deepcopy(), refid=anchor, internal=True))


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("doctree-read", add_anchors)
