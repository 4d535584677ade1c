"""No page shows the data of another visitor, with any cache, view or server."""

import pytest

from django_moe_personalize import rendering
from tests.security.canaries import STACKS, count_foreign, experiment


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("stack", STACKS)
def test_no_foreign_canary(upstream, settings, extent, tell, stack, mode):
    """Four visitors who browse at the same time get only their own content."""
    visitors = experiment(upstream, settings, stack, mode, extent(40, 2600))
    assert count_foreign(visitors) == 0
    tell(f"{sum(len(v.received) for v in visitors)} answers, {sum(v.own for v in visitors)} with their own canaries")
    assert all(visitor.own > len(visitor.received) / 2 for visitor in visitors)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_experiment_can_fail(upstream, settings, mode, monkeypatch):
    """If pages aren't kept out of the site's cache, the pages of other visitors have canaries."""
    monkeypatch.setattr(rendering, "keep_out_of_caches", lambda request: None)
    assert count_foreign(experiment(upstream, settings, "site cache inside", mode, 80)) > 0
