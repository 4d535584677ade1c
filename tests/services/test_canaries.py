"""No content of one visitor reaches another through a shared Redis; see tests/security/test_canaries.py."""

import pytest

from tests.security.canaries import STACKS, count_foreign, experiment
from tests.services.conftest import LONG
from tests.services.serving import start_cache


@pytest.fixture(scope="module")
def redis():
    with start_cache("redis") as caches:
        yield caches


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("stack", STACKS)
def test_no_foreign_canary_through_redis(redis, upstream, settings, extent, tell, stack, mode):
    """Four visitors at the same time get their own content, with pages and answers in Redis."""
    settings.CACHES = redis
    visitors = experiment(upstream, settings, stack, mode, 2600 if extent is LONG else 200)
    tell(f"{sum(len(v.received) for v in visitors)} answers, {count_foreign(visitors)} with another's canary")
    assert count_foreign(visitors) == 0
    assert all(visitor.own > len(visitor.received) / 2 for visitor in visitors)
