"""What a site's own tests use."""

import unittest

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.test import AsyncClient, Client, SimpleTestCase

from django_moe_personalize.conf import get_settings
from django_moe_personalize.testing import override_experiences, override_personalize

pytestmark = pytest.mark.urls("tests.site")


def test_experiences_are_those_of_the_test():
    """Every visitor gets what the test says, and nothing else; both counts are to be seen."""
    with override_experiences({"hero-banner": {"Title": "From the test"}}) as seen:
        assert Client().get("/read/").content == b"From the test"
        assert b"Free returns" in Client().get("/tags/").content
    assert seen.impressions == {"hero-banner": 1}
    assert seen.clicks == {}
    assert Client().get("/read/").content != b"From the test"


def test_overrides_nest():
    """The inner one counts while it lasts; nothing is left of it in the cache."""
    with override_experiences({"hero-banner": {"Title": "outer"}}):
        assert Client().get("/read/").content == b"outer"
        with override_experiences({"hero-banner": {"Title": "inner"}}):
            assert Client().get("/read/").content == b"inner"
        assert Client().get("/read/").content == b"outer"


@override_experiences({"hero-banner": {"Title": "decorated"}}, IMPRESSIONS="manual")
def test_experiences_as_a_decorator():
    """A test function may be decorated, and other settings may change with the experiences."""
    assert Client().get("/read/").content == b"decorated"
    assert get_settings().impressions == "manual"


@override_personalize(DEADLINE=1.5)
def test_settings_keep_the_others():
    """One setting changes, the others stay."""
    assert get_settings().deadline == 1.5
    assert get_settings().sandbox is True
    with override_personalize(CACHE_TTL=5):
        assert (get_settings().deadline, get_settings().cache_ttl) == (1.5, 5.0)


def test_settings_on_a_test_case():
    """A test case class may be decorated, as with Django's override_settings."""

    @override_personalize(DEADLINE=2.5)
    class Case(SimpleTestCase):
        def test(self):
            assert get_settings().deadline == 2.5
            assert settings.MOE_PERSONALIZE["SANDBOX"] is True

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


def test_settings_on_another_class():
    """What is no test case is refused, as Django does."""
    with pytest.raises(ValueError, match="subclasses of Django"):
        override_personalize(DEADLINE=2.5)(type("Other", (), {}))


def test_experiences_on_an_async_function():
    """An async test is decorated for as long as it runs."""

    @override_experiences({"hero-banner": {"Title": "async"}}, kwarg_name="seen")
    async def test(seen):
        response = await AsyncClient().get("/read/")
        return response.content, seen.impressions

    assert async_to_sync(test)() == (b"async", {})


def test_experiences_on_a_test_case():
    """Every method of a decorated class has the experiences, with nothing counted yet."""

    @override_experiences({"hero-banner": {"Title": "class"}}, attr_name="seen")
    class Case(SimpleTestCase):
        def test_one(self):
            assert self.client.get("/tags/").status_code == 200
            assert self.seen.impressions == {"hero-banner": 1}

        test_two = test_one

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert (result.testsRun, result.errors, result.failures) == (2, [], [])


def test_experiences_where_personalization_is_off():
    """A site whose tests run with ENABLED off turns it on for one."""
    with override_personalize(ENABLED=False), override_experiences({"hero-banner": {"Title": "on"}}):
        assert Client().get("/read/").content == b"on"
