"""A cache server in the test's memory. It is strict about keys and values, and the test moves its clock."""

import json

import pytest
from django.core.cache.backends.base import BaseCache, memcache_key_warnings

from django_moe_personalize.moengage.client import read_experience

VIRTUAL = {"default": {"BACKEND": "tests.fetching.virtual_cache.VirtualCache"}}

GARBAGE = (
    *("", "x", "AAAA", "A" * 32, "A" * 10_000, "é" * 32, "[]", "null", '["hero",{},{}]', '["hero",null,null]'),
    *("[1,{},{}]", '["hero",1,2]', "[" * 100_000, 17, 1.5, None, True, [], [1, 2, 3], {}, {"a": 1}),
)
"""Values that another program, or another release, may have left under our keys."""

OFFERING = {"dp_offering_id": "1", "offering_content": {}, "offering_context": {"moe_offering_id": "1"}}


def build(key, context=None, **payload):
    """Build an experience as the reader does."""
    return read_experience(key, {"payload": payload, "experience_context": context or {"cid": key}})


HERO = build("hero", Title="Hello", list=[OFFERING], Button="Go")
PROMO = build("promo", Text="Free returns")


class VirtualServer:
    """The state that every connection to the server shares."""

    def __init__(self):
        self.now = 1_000_000.0
        self.entries = {}
        self.calls = []
        self.refuse = None

    def time(self):
        """Return Unix seconds."""
        return self.now

    def put(self, key, value):
        """Store a value that another program wrote."""
        self.entries[key] = (float("inf"), json.dumps(value))

    def find_body(self, key):
        """Return the name of the entry that holds the body of an experience key."""
        return next(name for name, (_, text) in self.entries.items() if text.startswith(rf'"[\"{key}\"'))

    def find_visitor(self):
        """Return the name of the entry that holds the only visitor."""
        (name,) = (name for name, (_, text) in self.entries.items() if not text.startswith('"['))
        return name


server = VirtualServer()


@pytest.fixture(name="virtual")
def use_virtual_cache(settings):
    """Use the server, on a virtual clock, as the site's cache."""
    settings.CACHES = VIRTUAL
    server.__init__()
    return server


class VirtualCache(BaseCache):
    """Store JSON, as a site's own serializer may, and only under keys that Memcached accepts."""

    def __init__(self, location, params):
        super().__init__(params)

    def get_many(self, keys, version=None):
        """Return the entries that have not expired."""
        names = {self._name(key, version): key for key in keys}
        server.calls.append(("get", len(names)))
        live = {name: text for name, (until, text) in server.entries.items() if server.now < until}
        return {key: json.loads(live[name]) for name, key in names.items() if name in live}

    def set_many(self, data, timeout=None, version=None):
        """Store the values and return the keys of refused values, as Memcached does."""
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
