"""A keyed hash of several texts. The key comes from SECRET_KEY, so an attacker can't guess a text from its hash."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Collection

from django.conf import settings as django_settings
from django.utils.encoding import force_bytes


def build_digest(parts: Collection[str]) -> str:
    """Return the digest of ``parts``: 32 hexadecimal characters.

    The hash includes the length of each part, so that ``("ab", "c")`` and ``("a", "bc")`` have different digests.
    """
    lengths = array("Q", [len(parts), *map(len, parts)])
    data = lengths.tobytes() + "".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, key=_derive_key(django_settings.SECRET_KEY), digest_size=16).hexdigest()


@functools.lru_cache(maxsize=4)
def _derive_key(secret: str | bytes) -> bytes:
    return hashlib.blake2b(force_bytes(secret), digest_size=32, person=b"moe.cache.key").digest()
