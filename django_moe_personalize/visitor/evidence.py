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

    __slots__ = ("_count", "_credentials", "_entries", "size")

    def __init__(self, request: HttpRequest) -> None:
        # No local variable holds request.__dict__, because error reports show local variables.
        self._credentials = [*map(request.__dict__.get, _CREDENTIALS)]
        self._entries = dict(_get_entries(request))
        self._note_size(request)

    def _note_size(self, request: HttpRequest) -> None:
        self._count = len(request.__dict__)
        # While a request without a session has this many attributes, it hasn't changed.
        self.size = -1 if "session" in request.__dict__ or "auser" in request.__dict__ else self._count

    def holds(self, request: HttpRequest) -> bool:
        """Return whether the session has the same entries, and whether the request has no new attribute.

        Attributes of authentication don't count here: see has_same_credentials().
        """
        if len(request.__dict__) == self.size:
            return True
        if self._entries != _get_entries(request):
            return False
        if len(request.__dict__) != self._count:
            # New attributes are the last ones. If the class has the attribute too, it is cached data, such as ``GET``.
            added = [*request.__dict__][self._count :]
            if not added or [name for name in added if not name.startswith("_") and not hasattr(type(request), name)]:
                return False
            self._note_size(request)
        return True

    def has_same_credentials(self, request: HttpRequest) -> bool:
        """Return whether the session has the same entries, and whether authentication has set no attribute."""
        found = map(request.__dict__.get, _CREDENTIALS)
        return self._entries == _get_entries(request) and all(map(is_, found, self._credentials))


def _get_entries(request: HttpRequest) -> Mapping[str, Any]:
    """Return the entries of the session, or an empty mapping for a session that isn't loaded."""
    return getattr(request.__dict__.get("session"), "_session_cache", None) or {}
