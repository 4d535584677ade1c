"""A cache backend whose server is down."""

from django.core.cache.backends.base import BaseCache


class BrokenCache(BaseCache):
    """Fail at everything, as a cache does whose server is gone."""

    def __init__(self, location, params):
        super().__init__(params)

    def get_many(self, keys, version=None):
        """Fail."""
        raise ConnectionError("cannot connect to secret-host")

    def set_many(self, data, timeout=None, version=None):
        """Fail."""
        raise ConnectionError("cannot connect to secret-host")

    def clear(self):
        """Do nothing, so that tests can end."""
