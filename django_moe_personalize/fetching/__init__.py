"""Fetch experiences from memory, from the site's cache, or from MoEngage in one call under one deadline.

In the order of a page: ``flights`` looks into memory, and lets pages share one question: a ``flight``. ``cache`` and
``local_cache`` keep the answers. ``resolve`` answers a question. ``upstream`` calls MoEngage through the circuit
breaker. ``shared`` uses the site's own cache. ``switch`` knows the experiences that an operator has switched off, and
``switch_store`` keeps this in the database or in the site's cache. ``metadata`` tells why a key has no experience.
"""

from django_moe_personalize.fetching.flight import Flight
from django_moe_personalize.fetching.flights import start_fetch
from django_moe_personalize.fetching.resolve import Answer, Experiences, resolve
from django_moe_personalize.fetching.upstream import Question
