"""Notice that a request has changed since the site's functions found its visitor."""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any, Final

from django.http import HttpRequest

_CREDENTIALS: Final = ("user", "auser", "auth", "session")
"""Attributes that authentication sets: in Django, in Django REST framework and in django-ninja (``auth``)."""


class Evidence:
    """The data of a request that IDENTIFY and CONSENT most likely use."""

    __slots__ = ("_credentials", "_entries", "_size")

    def __init__(self, request: HttpRequest) -> None:
        known = request.__dict__
        self._credentials = [*map(known.get, _CREDENTIALS)]
        self._entries = dict(_get_entries(known))
        self._size = len(known)

    def holds(self, request: HttpRequest) -> bool:
        """Return whether the session has the same entries, and whether the request has no new attribute.

        Attributes of authentication don't count here: see has_same_credentials().
        """
        known = request.__dict__
        if self._entries != _get_entries(known):
            return False
        if len(known) != self._size:
            # New attributes are the last ones. If the class has the attribute too, it is cached data, such as ``GET``.
            added = [*known][self._size :]
            if not added or not all(name.startswith("_") or hasattr(type(request), name) for name in added):
                return False
            self._size = len(known)
        return True

    def has_same_credentials(self, request: HttpRequest) -> bool:
        """Return whether the session has the same entries, and whether authentication has set no attribute."""
        known = request.__dict__
        return self._entries == _get_entries(known) and all(map(is_, map(known.get, _CREDENTIALS), self._credentials))


def _get_entries(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entries of the session, or an empty mapping for a session that isn't loaded."""
    return getattr(known.get("session"), "_session_cache", None) or {}
