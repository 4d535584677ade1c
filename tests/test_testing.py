"""The tools for a site's own tests."""

import threading
import unittest
from contextlib import ExitStack
from decimal import Decimal

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, SimpleTestCase

from django_moe_personalize import api
from django_moe_personalize.client import get_client, get_engine
from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.shared import build_key
from django_moe_personalize.fetching.upstream import get_background, get_pool
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.testing import PersonalizeTestMixin, isolate, override_experiences, override_personalize
from tests.conftest import settle
from tests.delivery.events import make_events
from tests.processes import in_child, use_shared_cache  # noqa: F401 - a fixture among them
from tests.site import TAGS, show
from tests.wire import LONG

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


def hold_thread(pool):
    """Keep a thread of the pool busy. Return a function that calls a function in this thread."""
    go_on, calls = threading.Event(), []
    future = pool.submit(lambda: go_on.wait(LONG) and calls.pop()())
    return lambda call: (calls.append(call), go_on.set(), future.result(LONG))[-1]


def list_belongings():
    """Return everything that a test could share with another test, if the package mixed them up."""
    parts = [get() for get in (get_runtime, get_engine, get_delivery, get_metadata_store)]
    return {*parts, build_key("x"), get_runtime().settings.workspace_id}


@pytest.mark.parametrize("get", [get_pool, get_background])
@pytest.mark.parametrize("first", [{}, {"hero-banner": {}}], ids=["no override", "another override"])
def test_threads_keep_their_experiences(get, first):
    """A thread that outlives a change of the experiences uses nothing of the other test, and neither test ends it."""
    with ExitStack() as stack:
        if first:
            stack.enter_context(override_experiences(first))
        before, call_before = list_belongings(), hold_thread(get())
        with override_experiences({}):
            within, call_within = list_belongings(), hold_thread(get())
            assert call_before(list_belongings) == before
        assert call_within(list_belongings) == within
        assert not before & within


def test_thread_that_delivers_keeps_its_experiences():
    """The delivery's thread looks for withdrawals of consent among those of its own test."""
    keys, go_on = [], threading.Event()

    class Delivery(ThreadDelivery):
        def send(self, events, **options):
            go_on.wait(LONG)
            keys.append(build_key("withdrawn"))
            return super().send(events, **options)

    with override_experiences({}):
        expected, delivery = build_key("withdrawn"), Delivery(interval=0.0)
        delivery.bind(get_runtime())
        delivery.record(make_events(1))
    go_on.set()
    delivery.close()
    assert keys == [expected]


@pytest.mark.parametrize("streams", [False, True])
def test_page_keeps_its_experiences(serve, streams):
    """A page that outlives a change of the experiences reports its events where it began."""
    stack = ExitStack()

    def view(request):
        content = show(request, TAGS).content
        stack.other = stack.enter_context(override_experiences({}))
        return StreamingHttpResponse([content]) if streams else HttpResponse(content)

    serve(view)
    with override_experiences({"hero-banner": {"Title": "mine"}}) as given, stack:
        assert b"mine" in b"".join(Client().get("/page/"))
    assert (given.impressions, stack.other.impressions) == ({"hero-banner": 1}, {})


def count_fallbacks(first, last):
    """Open two pages in each of many overrides, and return how many of the pages show a fallback."""
    fallbacks = 0
    for number in range(first, last):
        # The other key has no experience, so the background thread reads the metadata.
        key, name = [("hero-banner", "Title"), ("promo-strip", "Text")][number % 2]
        with override_experiences({key: {name: f"page {number}"}}):
            for _ in range(2):
                fallbacks += f"page {number}" not in Client().get("/tags/").text
                # Without the wait, some threads outlive their override.
                if number % 4 < 2:
                    settle()
    return fallbacks


@pytest.mark.usefixtures("shared")
def test_loop_of_overrides_shows_no_fallback(pytestconfig):
    """Two runs of many tests share a cache. Each page shows the experience of its own test."""
    count = 2000 if pytestconfig.getoption("--long", default=False) else 16
    assert in_child(lambda: count_fallbacks(0, count) == 0)
    assert count_fallbacks(1, count + 1) == 0


def test_assertions_explain_themselves():
    """A failed assertion says what was shown and clicked instead, and how to fix the test."""
    with override_experiences(
        {"hero-banner": {"Title": "One", "CtaLabel": "Go"}, "promo-strip": {"Text": "Two"}}
    ) as given:
        events = given.events
        given.give("hero-banner", {"Title": "One"}, variation="B")
        events.assert_not_shown()
        events.assert_not_clicked("hero-banner")
        check_refused(
            "'hero-banner' was not shown. No experience was shown. An impression", events.assert_shown, "hero-banner"
        )
        Client().get("/tags/")
        Client().post("/method/")
        events.assert_shown("hero-banner", variation="B", times=1)
        events.assert_shown("promo-strip", variation="1")
        events.assert_clicked("hero-banner", times=1)
        for text, check, *arguments in [
            (
                "was not shown with the variation 'A'. It was shown with: 'B' (1×)",
                lambda: events.assert_shown("hero-banner", variation="A"),
            ),
            ("was not clicked with the element 'x'. It was", lambda: events.assert_clicked("hero-banner", element="x")),
            ("was shown 1 times, not 2 times", lambda: events.assert_shown("hero-banner", times=2)),
            ("These were clicked: 'hero-banner' (1×). A click counts", events.assert_clicked, "promo-strip"),
            ("Did you mean 'hero-banner'?", events.assert_shown, "hero-baner"),
            ("It gives: ['hero-banner', 'promo-strip'].", events.assert_shown, "zzz"),
            ("were shown that should not be: 'promo-strip' (1×)", events.assert_not_shown, "promo-strip"),
            ("were clicked that should not be: 'hero-banner' (1×)", events.assert_not_clicked),
        ]:
            check_refused(text, check, *arguments)
        events.clear()
        given.remove("hero-banner")
        assert b"Welcome" in Client().get("/tags/").content
        assert (events.impressions, events.clicks) == ({"promo-strip": 1}, {})


def check_refused(text, check, *arguments):
    with pytest.raises(AssertionError) as caught:
        check(*arguments)
    assert text in str(caught.value)


REAL = {"SANDBOX": False, "WORKSPACE_ID": "SHOP", "API_KEY": "0b4c7e5d", "DEADLINE": 2}


@pytest.mark.parametrize(
    ("network", "base_url", "is_closed"),
    [
        (False, "https://moengage.example/v1", True),
        (False, "http://127.0.0.1:1/v1", False),
        (True, "https://moengage.example/v1", False),
    ],
)
def test_isolated_test_calls_only_this_machine(network, base_url, is_closed):
    """Without permission, no call leaves the machine: the transport of another host refuses all calls."""
    runtime = get_runtime()
    with isolate(network=network), override_personalize(**REAL, BASE_URL=base_url):
        transport = get_client()._transport
        assert (type(transport).__name__ == "_NoNetwork") == is_closed
        assert get_runtime() is not runtime


def test_payload_that_json_does_not_have():
    """The mistake is an error of the line that gives the payload, and not a fallback on the page."""
    with override_experiences({}) as given, pytest.raises(TypeError, match="can't be JSON"):
        given.give("hero-banner", {"Price": Decimal("9.99")})


def test_isolated_test_that_calls_fails():
    """The page shows its fallback, and the test fails with the fix."""
    with (
        pytest.raises(AssertionError, match=r"tried to call https://moengage.example/v1 .* Remove SANDBOX"),
        isolate(),
        override_personalize(**REAL, BASE_URL="https://moengage.example/v1"),
    ):
        assert Client().get("/read/").content == b"default"


def test_mixin():
    """A test case of Django has the experiences and the events as attributes."""

    class Case(PersonalizeTestMixin, SimpleTestCase):
        experiences = {"hero-banner": {"Title": "mixin"}}

        def test(self):
            assert self.client.get("/tags/").status_code == 200
            self.moe_events.assert_shown("hero-banner")

    assert run(Case) == 1


def test_tracked_events():
    """A failed assertion says which events were tracked instead, and for whom."""
    with override_experiences({}) as seen:
        events = seen.events
        events.assert_not_tracked()
        with pytest.raises(AssertionError, match=r"'Order placed' was not tracked\. No event was tracked\. .*robot"):
            events.assert_tracked("Order placed")
        for _ in range(2):
            api.track_event("user-1", "Order placed", {"total": 5})
        events.assert_tracked("Order placed", customer_id="user-1", attributes={"total": 5}, times=2)
        events.assert_not_tracked("Order paid")
        with pytest.raises(
            AssertionError, match=r"'Order paid' was not tracked\. These were tracked: 'Order placed' \(2"
        ):
            events.assert_tracked("Order paid")
        with pytest.raises(AssertionError, match=r"was tracked 2 times, not 1 times"):
            events.assert_tracked("Order placed", times=1)
        for other in ({"customer_id": "user-2"}, {"attributes": {"total": 6}}):
            with pytest.raises(AssertionError, match=r"It was tracked for: 'user-1' {'total': 5}, 'user-1'"):
                events.assert_tracked("Order placed", **other)
        with pytest.raises(AssertionError, match=r"should not be: 'Order placed' \(2"):
            events.assert_not_tracked()
