"""The script is small and works under a strict Content-Security-Policy."""

from pathlib import Path

import minify

import django_moe_personalize

SCRIPT = Path(django_moe_personalize.__file__).parent / "static" / "moe_personalize" / "personalize.js"


def test_script_is_small():
    """A site's build or a CDN minifies the script. Then it has 4 KiB at most."""
    assert len(minify.string("application/javascript", SCRIPT.read_text()).encode()) <= 4096


def test_script_evaluates_no_text():
    """It needs neither 'unsafe-eval' nor 'unsafe-inline'."""
    text = SCRIPT.read_text()
    assert [word for word in ("eval(", "Function(", "innerHTML", ".style", "document.write") if word in text] == []
