"""Which requests count: a request of a person who sees the page now, and not of a robot or a prefetch."""

from __future__ import annotations

import functools
import re
from typing import Final

from django.http import HttpRequest

ROBOTS: Final = re.compile(
    r"(?<!cu)bots?\b|crawl|spider|slurp|facebookexternalhit|preview|lighthouse|pingdom|monitoring", re.IGNORECASE
)
"""Matches the user agent of robots that identify themselves, and not of phones by Cubot."""

_MAX_USER_AGENT: Final = 512


def is_counted(request: HttpRequest) -> bool:
    """Return whether impressions and clicks of this request count: not for HEAD, a prefetch or a robot."""
    # Not request.headers: building it takes 830 bytecodes and 8.4 µs.
    meta = request.META
    purpose = meta.get("HTTP_SEC_PURPOSE") or meta.get("HTTP_PURPOSE") or meta.get("HTTP_X_MOZ") or ""
    if request.method == "HEAD" or "prefetch" in purpose.lower():
        return False
    # Cut, so that a made-up user agent takes neither much time nor much memory.
    return not _is_robot(meta.get("HTTP_USER_AGENT", "")[:_MAX_USER_AGENT])


# Pages come from few kinds of browsers. Remembered: 0.1 µs. Searched: 8.7 µs.
@functools.lru_cache(maxsize=1024)
def _is_robot(user_agent: str) -> bool:
    return ROBOTS.search(user_agent) is not None
