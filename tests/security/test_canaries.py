"""Nothing of one visitor reaches another, through whichever cache, page and server."""

import pytest

from django_moe_personalize import context
from django_moe_personalize.testing import override_personalize
from tests.security.canaries import PERSONALIZE, SETTINGS, STACKS, browse, build_visitors, count_foreign


@pytest.fixture
def site(upstream, settings):
    """Serve the canaries' pages, with an upstream that says what it was asked."""
    from tests.security.canaries import echo

    upstream.answer = echo
    for name, value in SETTINGS.items():
        setattr(settings, name, value)
    return settings


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("stack", STACKS)
def test_no_foreign_canary(site, extent, tell, stack, mode):
    """Four visitors who ask at the same time get their own content and nobody else's."""
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
    """Without what keeps pages out of the site's cache, canaries are found in others' pages."""
    monkeypatch.setattr(context.headers, "keep_out_of_site_cache", lambda request: None)
    site.MIDDLEWARE = STACKS["site cache inside"]
    visitors = build_visitors(mode)
    with override_personalize(**PERSONALIZE):
        browse(visitors, 80, mode=mode, seed=7)
    assert count_foreign(visitors) > 0
