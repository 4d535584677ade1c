"""Fetch experiences from memory, from the site's cache, or from MoEngage in one call under one deadline.

In the order of a page: ``flight`` looks into memory, and lets pages share one question. ``cache`` and
``local_cache`` keep the answers. ``resolve`` answers a question. ``upstream`` calls MoEngage through the circuit
breaker. ``shared`` uses the site's own cache. ``metadata`` tells why a key has no experience.
"""

from django_moe_personalize.fetching.flight import Flight, start_fetch
from django_moe_personalize.fetching.resolve import Answer, Experiences, resolve
from django_moe_personalize.fetching.upstream import Question
