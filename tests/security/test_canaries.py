"""No page shows the data of another visitor, with any cache, view or server."""

import pytest

from django_moe_personalize import rendering
from django_moe_personalize.testing import override_personalize
from tests.security.canaries import PERSONALIZE, SETTINGS, STACKS, browse, build_visitors, count_foreign, echo


@pytest.fixture
def site(upstream, settings):
    """Serve the pages of the canaries, with an upstream that returns the request as content."""
    upstream.answer = echo
    for name, value in SETTINGS.items():
        setattr(settings, name, value)
    return settings


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("stack", STACKS)
def test_no_foreign_canary(site, extent, tell, stack, mode):
    """Four visitors who browse at the same time get only their own content."""
    site.MIDDLEWARE = STACKS[stack]
    visitors = build_visitors(mode)
    requests = extent(40, 2600)
    with override_personalize(**PERSONALIZE):
        browse(visitors, requests, mode=mode, seed=7)
    assert count_foreign(visitors) == 0
    tell(f"{sum(len(v.received) for v in visitors)} answers, {sum(v.own for v in visitors)} with their own canaries")
    assert all(visitor.own > len(visitor.received) / 2 for visitor in visitors)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_experiment_can_fail(site, mode, monkeypatch):
    """If pages aren't kept out of the site's cache, the pages of other visitors have canaries."""
    monkeypatch.setattr(rendering, "keep_out_of_caches", lambda request: None)
    site.MIDDLEWARE = STACKS["site cache inside"]
    visitors = build_visitors(mode)
    with override_personalize(**PERSONALIZE):
        browse(visitors, 80, mode=mode, seed=7)
    assert count_foreign(visitors) > 0
