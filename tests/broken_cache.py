"""A cache backend whose server is down."""

from django.core.cache.backends.base import BaseCache


class BrokenCache(BaseCache):
    """Fail at everything, as a cache does whose server is gone."""

    def __init__(self, location, params):
        super().__init__(params)

    def _fail(self, *args, **kwargs):
        raise ConnectionError("cannot connect to secret-host")

    add = get = get_many = incr = set = set_many = _fail

    def clear(self):
        """Do nothing, so that tests can end."""
