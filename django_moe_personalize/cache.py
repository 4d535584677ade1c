"""Keys, freshness and stale answers of experiences in the site's Django cache.

One entry is one experience for one visitor, present or absent. A cache that fails is a miss.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings as django_settings
from django.core.cache import caches
from django.utils.encoding import force_bytes

from django_moe_personalize.callables import log_once
from django_moe_personalize.conf import Settings, get_settings
from django_moe_personalize.moengage.reader import find_offerings
from django_moe_personalize.moengage.types import DataSource, Experience

CACHE_FORMAT = 1
"""Raised when the stored value changes shape; a release that keeps it empties no site's cache."""


@functools.lru_cache(maxsize=4)
def _derive_hash_key(secret: str | bytes) -> bytes:
    return hashlib.blake2b(force_bytes(secret), digest_size=32, person=b"moe.cache.key").digest()


def build_digest(parts: Iterable[str]) -> str:
    """Return 32 hexadecimal characters for ``parts``, injective up to the hash.

    Every part is prefixed by its length, so that ``("ab", "c")`` and ``("a", "bc")`` differ, and
    the hash is keyed with the site's secret, so that no one can guess an identifier from a key.
    """
    digest = hashlib.blake2b(key=_derive_hash_key(django_settings.SECRET_KEY), digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def build_key(*parts: str) -> str:
    """Return the cache key of ``parts`` in the configured workspace; nothing in it can be read back."""
    settings = get_settings()
    workspace = (settings.workspace_id, settings.base_url, str(settings.sandbox))
    return f"moe_personalize:{CACHE_FORMAT}:{build_digest((*workspace, *parts))}"


def get_many(keys: Iterable[str]) -> dict[str, Any]:
    """Return what the site's cache has of ``keys``; nothing when the cache fails."""
    alias = get_settings().cache
    try:
        return caches[alias].get_many(keys)
    except Exception as error:  # whatever a cache backend raises, it is a miss
        _log_failure(alias, error)
        return {}


def set_many(entries: Mapping[str, Any], *, timeout: float) -> None:
    """Store ``entries`` in the site's cache for ``timeout`` seconds, if the cache takes them."""
    alias = get_settings().cache
    try:
        caches[alias].set_many(dict(entries), timeout=timeout)
    except Exception as error:  # see get_many()
        _log_failure(alias, error)


def _log_failure(alias: str, error: Exception) -> None:
    message = "The cache %r failed (%s); experiences are fetched without it."
    log_once(("cache", alias, type(error)), message, alias, type(error).__name__)


@dataclass(frozen=True, slots=True)
class CachedExperience:
    """An answer from the cache: ``experience`` is ``None`` when the vendor had none for the visitor."""

    experience: Experience | None
    fresh: bool


class ExperienceCache:
    """The experiences of one visitor; ``clock`` gives Unix seconds, which all processes share."""

    def __init__(self, visitor_digest: str, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._visitor = visitor_digest
        self._ttl = settings.cache_ttl
        self._lifetime = max(settings.cache_ttl, settings.cache_stale_ttl)
        self._clock = clock

    def get(self, experience_keys: Iterable[str]) -> dict[str, CachedExperience]:
        """Return what is known, fresh or stale, in one round trip to the cache."""
        names = {build_key("experience", self._visitor, key): key for key in experience_keys}
        now = self._clock()
        answers = {names[name]: self._load(names[name], value, now) for name, value in get_many(names).items()}
        return {key: cached for key, cached in answers.items() if cached is not None}

    def _load(self, experience_key: str, value: tuple[float, Any], now: float) -> CachedExperience | None:
        stored_at, body = value
        age = now - stored_at
        if age > self._lifetime:
            return None
        experience = None
        if body is not None:
            payload, context = body
            experience = Experience(experience_key, payload, context, DataSource.CACHE, tuple(find_offerings(payload)))
        return CachedExperience(experience, fresh=age < self._ttl)

    def set(self, answers: Mapping[str, Experience | None]) -> None:
        """Store answers, absent ones too, in one round trip to the cache."""
        now = self._clock()
        set_many(
            {
                build_key("experience", self._visitor, key): (
                    now,
                    None if e is None else (dict(e.payload), dict(e.experience_context)),
                )
                for key, e in answers.items()
            },
            timeout=self._lifetime,
        )
