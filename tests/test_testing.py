"""The tools for a site's own tests."""

import unittest

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.test import AsyncClient, Client, SimpleTestCase

from django_moe_personalize.conf import get_settings
from django_moe_personalize.testing import override_experiences, override_personalize

pytestmark = pytest.mark.urls("tests.site")


def run(case):
    """Run a test case and return how many tests it has; they pass."""
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert (result.errors, result.failures) == ([], [])
    return result.testsRun


def test_visitors_get_the_experiences_of_the_test():
    """Visitors get only the experiences of the test. Impressions and clicks are counted."""
    with override_experiences({"hero-banner": {"Title": "From the test"}}) as seen:
        assert Client().get("/read/").content == b"From the test"
        assert b"Free returns" in Client().get("/tags/").content
        Client().post("/method/")
    assert seen.impressions == {"hero-banner": 1}
    assert seen.clicks == {"hero-banner": 1}
    assert Client().get("/read/").content != b"From the test"


def test_nested_experiences():
    """The inner experiences win during their context. The cache keeps nothing of them."""
    with override_experiences({"hero-banner": {"Title": "outer"}}):
        assert Client().get("/read/").content == b"outer"
        with override_experiences({"hero-banner": {"Title": "inner"}}):
            assert Client().get("/read/").content == b"inner"
        assert Client().get("/read/").content == b"outer"


@override_experiences({"hero-banner": {"Title": "decorated"}})
def test_decorated_function():
    """A test function can be decorated."""
    assert Client().get("/read/").content == b"decorated"


def test_decorated_async_function():
    """An async test function can be decorated, and gets the counts as an argument."""

    @override_experiences({"hero-banner": {"Title": "async"}}, kwarg_name="seen")
    async def test(seen):
        response = await AsyncClient().get("/read/")
        return response.content, seen.impressions

    assert async_to_sync(test)() == (b"async", {})


def test_decorated_test_case():
    """Every test of the class starts with empty counts, which are an attribute."""

    @override_experiences({"hero-banner": {"Title": "class"}}, attr_name="seen")
    class Case(SimpleTestCase):
        def test_one(self):
            assert self.client.get("/tags/").status_code == 200
            assert self.seen.impressions == {"hero-banner": 1}

        test_two = test_one

    assert run(Case) == 2


def test_experiences_with_other_settings():
    """Settings can change with the experiences. ENABLED is on, whatever the site's tests set."""
    with (
        override_personalize(ENABLED=False),
        override_experiences({"hero-banner": {"Title": "on"}}, IMPRESSIONS="manual") as seen,
    ):
        assert get_settings().impressions == "manual"
        assert b"on" in Client().get("/tags/").content
    assert seen.impressions == {}


@override_personalize(DEADLINE=1.5)
def test_settings_of_a_function():
    """override_personalize() changes only its own settings."""
    assert get_settings().deadline == 1.5
    assert get_settings().sandbox is True
    with override_personalize(CACHE_TTL=5):
        assert (get_settings().deadline, get_settings().cache_ttl) == (1.5, 5.0)


def test_settings_of_a_test_case():
    """Only classes that Django's override_settings accepts can be decorated."""

    @override_personalize(DEADLINE=2.5)
    class Case(SimpleTestCase):
        def test(self):
            assert get_settings().deadline == 2.5
            assert settings.MOE_PERSONALIZE["SANDBOX"] is True

    assert run(Case) == 1
    with pytest.raises(ValueError, match="subclasses of Django"):
        override_personalize(DEADLINE=2.5)(type("Other", (), {}))
