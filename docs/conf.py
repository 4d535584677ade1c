"""Sphinx: the documents, written by hand in MyST Markdown; tests/test_docs.py holds them to the code."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from django_moe_personalize import __version__

project = "django-moe-personalize"
author = "django-moe-personalize contributors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
