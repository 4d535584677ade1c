"""What processes agree on through a shared cache."""

import time

import pytest

from django_moe_personalize.fetching import answering, cache
from django_moe_personalize.fetching.answering import ask
from django_moe_personalize.fetching.cache import get_local_cache
from django_moe_personalize.fetching.shared import add_to_count, claim
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor.gather import Visitor
from django_moe_personalize.visitor.identity import Identity

VISITOR = Visitor(Identity("1"), {})


@pytest.fixture
def shared(settings, tmp_path):
    """Use a cache that processes share."""
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": str(tmp_path)}
    }


def test_memory_of_one_process_is_no_agreement():
    """Without a shared cache everyone asks, and counts alone."""
    assert claim("visitor", ["a"], 1.0)
    assert claim("visitor", ["a"], 1.0)
    assert add_to_count("slot", 5, 60.0) is None


def test_one_claims(shared):
    """The first who claims asks; another question is another claim."""
    assert claim("visitor", ["a"], 1.0)
    assert not claim("visitor", ["a"], 1.0)
    assert claim("visitor", ["b"], 1.0)
    assert claim("another", ["a"], 1.0)


def test_all_count_together(shared):
    """A number grows whoever adds to it."""
    assert [add_to_count("slot", 5, 60.0) for _ in range(3)] == [5, 10, 15]
    assert add_to_count("next", 1, 60.0) == 1


def test_cache_that_fails_keeps_nobody_from_asking(settings, caplog):
    """A cache that is down costs agreement, not experiences."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    assert claim("visitor", ["a"], 1.0)
    assert add_to_count("slot", 5, 60.0) is None
    assert len(caplog.records) == 1


def test_another_process_has_the_answer(shared, upstream, monkeypatch):
    """Who does not get the claim takes the answer of who did, as soon as it is there."""
    ask(VISITOR, ["hero-banner"], deadline=Deadline(10))
    stored = cache.get_many([cache.ExperienceCache(VISITOR.build_digest(), answering.get_settings())._name])
    from django.core.cache import cache as site_cache

    site_cache.delete_many(stored)
    get_local_cache().clear()
    assert claim(VISITOR.build_digest(), ["hero-banner"], 5.0) is False
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            cache.set_many(stored, timeout=60)

    monkeypatch.setattr(answering.time, "sleep", sleep)
    answer = ask(VISITOR, ["hero-banner"], deadline=Deadline(10))
    assert answer.experiences.keys() == {"hero-banner"}
    assert len(pauses) == 3
    assert len(upstream.fetches) == 1


def test_claim_without_an_answer_is_waited_for_half_the_time(shared, upstream):
    """A process that died with its claim costs another half of its time, and then it asks itself."""
    claim(VISITOR.build_digest(), ["hero-banner"], 5.0)
    started = time.monotonic()
    answer = ask(VISITOR, ["hero-banner"], deadline=Deadline(0.1))
    assert time.monotonic() - started >= 0.05
    assert answer.experiences.keys() == {"hero-banner"}


def test_site_that_caches_nothing_waits_for_nobody(shared, upstream):
    """With CACHE_TTL at 0 another process's answer is never fresh, so everyone asks at once."""
    with override_personalize(CACHE_TTL=0, CACHE_STALE_TTL=0):
        for count in (1, 2):
            assert ask(VISITOR, ["hero-banner"], deadline=Deadline(10)).experiences
            assert len(upstream.fetches) == count
        assert claim(VISITOR.build_digest(), ["hero-banner"], 5.0)
