"""Sphinx: the documents, in MyST Markdown, with the reference read from the code's docstrings."""

import os
import sys
from pathlib import Path

import django

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from django_moe_personalize import __version__  # noqa: E402 (the path to it is set above)

project = "django-moe-personalize"
author = "django-moe-personalize contributors"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
# Links into other projects' documentation would need the network while building.
nitpick_ignore_regex = [(r"py:.*", r"(?!django_moe_personalize\b).*")]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

html_theme = "furo"
html_title = project
html_copy_source = False
