"""A keyed hash of several texts. Without the site's secret key, a text can't be guessed from its digest."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Collection

from django.conf import settings as django_settings
from django.utils.encoding import force_bytes


def build_digest(parts: Collection[str]) -> str:
    """Return 32 hexadecimal characters for ``parts``. Two different lists never share a digest.

    The number of parts and their lengths are hashed first, so that ``("ab", "c")`` and ``("a", "bc")`` differ.
    """
    lengths = array("Q", [len(parts), *map(len, parts)])
    data = lengths.tobytes() + "".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, key=_derive_key(django_settings.SECRET_KEY), digest_size=16).hexdigest()


@functools.lru_cache(maxsize=4)
def _derive_key(secret: str | bytes) -> bytes:
    return hashlib.blake2b(force_bytes(secret), digest_size=32, person=b"moe.cache.key").digest()
