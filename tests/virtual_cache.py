"""A cache server in the test's own memory: strict about keys and values, with a clock that a test moves."""

import json

import pytest
from django.core.cache.backends.base import BaseCache, memcache_key_warnings

from django_moe_personalize.moengage.types import Experience

VIRTUAL = {"default": {"BACKEND": "tests.virtual_cache.VirtualCache"}}

GARBAGE = (
    *("", "x", "AAAA", "A" * 32, "é" * 32, "[]", "null", '["hero",{},{}]', "[1,{},{}]", '["hero",1,2]', "[" * 100_000),
    *(17, 1.5, None, True, [], [1, 2, 3], {}, {"a": 1}),
)
"""What another program, or another release, may have left in our place."""

OFFERING = {"dp_offering_id": "1", "offering_content": {}, "offering_context": {"moe_offering_id": "1"}}
HERO = Experience("hero", {"Title": "Hello", "list": [OFFERING], "Button": "Go"}, {"cid": "1"})
PROMO = Experience("promo", {"Text": "Free returns"}, {"cid": "2"})
"""Answers to store."""


class VirtualServer:
    """What every connection to the server shares."""

    def __init__(self):
        self.now = 1_000_000.0
        self.entries = {}
        self.calls = []
        self.refuse = None

    def time(self):
        """Return Unix seconds."""
        return self.now

    def put(self, key, value):
        """Store what is not ours."""
        self.entries[key] = (float("inf"), json.dumps(value))


server = VirtualServer()


@pytest.fixture(name="virtual")
def use_virtual_cache(settings):
    """Give a cache server on a virtual clock as the site's cache."""
    settings.CACHES = VIRTUAL
    server.__init__()
    return server


class VirtualCache(BaseCache):
    """Store JSON, as a site's own serializer may, and only under keys that Memcached takes."""

    def __init__(self, location, params):
        super().__init__(params)

    def get_many(self, keys, version=None):
        """Return what has not expired."""
        names = {self._name(key, version): key for key in keys}
        server.calls.append(("get", len(names)))
        live = {name: text for name, (until, text) in server.entries.items() if server.now < until}
        return {key: json.loads(live[name]) for name, key in names.items() if name in live}

    def set_many(self, data, timeout=None, version=None):
        """Store all, but what is refused, which is returned, as Memcached does."""
        server.calls.append(("set", len(data)))
        assert timeout == int(timeout) > 0
        refused = [key for key, value in data.items() if server.refuse is not None and server.refuse(value)]
        for key, value in data.items():
            if key not in refused:
                server.entries[self._name(key, version)] = (server.now + timeout, json.dumps(value))
        return refused

    def clear(self):
        """Become a new server."""
        server.__init__()

    def _name(self, key, version):
        name = self.make_key(key, version)
        assert not list(memcache_key_warnings(name))
        return name
