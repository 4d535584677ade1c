"""The script as a file: small, plain, and safe under a strict policy."""

from __future__ import annotations

from pathlib import Path

import minify

import django_moe_personalize

SCRIPT = Path(django_moe_personalize.__file__).parent / "static" / "moe_personalize" / "personalize.js"


def test_script_is_small():
    """Minified, as a site's own build or CDN does it, the script has at most 2 KiB."""
    assert len(minify.string("application/javascript", SCRIPT.read_text()).encode()) <= 2048


def test_script_evaluates_no_text():
    """Nothing in it needs 'unsafe-eval' or 'unsafe-inline'."""
    text = SCRIPT.read_text()
    assert [word for word in ("eval(", "Function(", "innerHTML", ".style", "document.write") if word in text] == []
