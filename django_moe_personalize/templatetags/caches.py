"""Tell which template tags cache their content. Our tags refuse to stand inside such a tag. It isn't a tag library."""

from __future__ import annotations

import re
from typing import Final

_CACHE = re.compile("cach(e|ing)", re.IGNORECASE)
_PARTS = ("func", "__self__", "__class__")

PLACEHOLDERS: Final = frozenset({"placeholder", "static_placeholder", "static_alias"})
_CMS = ("cms.", "djangocms_")

# Names with the word cache that say the contrary: nocache, uncached, never_cache, cachebuster.
_NO_CACHE = re.compile(
    r"(?<![a-z])(no|non|not|un|end|never|without|outside|skip|bypass|disable|prevent|avoid|dont|clear|flush|invalidate)"
    r"_?cach\w*|cache_?(bust|exempt|off|never)\w*",
    re.IGNORECASE,
)


def is_cache(tag: str, *sources: object) -> bool:
    """Return whether a tag caches its content, according to its name or to its functions and classes ``sources``.

    Wagtail has ``{% wagtailcache %}``, and cacheops has ``{% cached_as %}``. A site may register Django's ``do_cache``
    under any name. django CMS caches its placeholders, with the default content in ``{% placeholder "x" or %}``.
    """
    if _CACHE.search(tag):
        return _says_cache(tag)
    if tag in PLACEHOLDERS and any(str(getattr(source, "__module__", "")).startswith(_CMS) for source in sources):
        return True
    found = [part for source in sources for part in (source, *(getattr(source, name, None) for name in _PARTS))]
    found += [base for part in found if isinstance(part, type) for base in part.__mro__]
    return any(_says_cache(str(getattr(part, "__qualname__", ""))) for part in found)


def _says_cache(name: str) -> bool:
    return _CACHE.search(_NO_CACHE.sub("", name)) is not None
