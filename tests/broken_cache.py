"""Cache backends whose server is down."""

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


class SilentCache(BaseCache):
    """Answer everything with LOCATION, as django-redis answers ``None`` or ``False`` with IGNORE_EXCEPTIONS."""

    def __init__(self, location, params):
        super().__init__(params)
        self.answer = location

    def _answer(self, *args, **kwargs):
        return self.answer

    add = get = get_many = incr = set = set_many = _answer

    def clear(self):
        """Do nothing, so that tests can end."""
