"""The signals experience_shown and experience_clicked: once for each counted event, after the response."""

import json
import re
from types import SimpleNamespace

import pytest
from django.test import RequestFactory

from django_moe_personalize import api
from django_moe_personalize.moengage.types import Action, Experience, Offering
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.signals import experience_clicked, experience_shown
from django_moe_personalize.testing import override_experiences, override_personalize
from django_moe_personalize.tracking import build_event, exposures
from django_moe_personalize.visitor import is_in_event_loop
from tests.delivery.conftest import connected
from tests.pages import BROWSER, text
from tests.processes import use_shared_cache  # noqa: F401 - a fixture

pytestmark = pytest.mark.urls("tests.site")

HERO = Experience("hero", {}, {"cid": "1", "moe_variation_id": "2", "audience_name": "All"})
OFFER = Offering("7", {}, {"moe_offering_id": "7"})


@pytest.fixture
def shown():
    with override_experiences({"hero-banner": {"Title": "Hello", "CtaLabel": "Buy"}}) as seen:
        yield seen


@pytest.fixture
def heard():
    """Collect the signals: (signal, arguments)."""
    found = []

    def receive(signal, sender, **arguments):
        assert sender is Experience
        name = "shown" if signal is experience_shown else "clicked"
        found.append((name, SimpleNamespace(in_loop=is_in_event_loop(), **arguments)))

    with connected(receive, experience_shown, experience_clicked):
        yield found


def uuids(shown, action):
    return [entry.event_uuid for entry in shown.engine.ledger.entries() if entry.action == action.value]


@pytest.mark.parametrize("path", ["/tags/", "/streaming-declared/"])
def test_page(shown, visit, heard, path):
    """A page sends one signal for each experience, with the UUID that MoEngage gets, after the response."""
    response = visit(path, headers={"User-Agent": BROWSER})
    assert "Hello" in text(response)
    ((name, found),) = heard
    assert (name, found.request.path, found.experience_key, found.offering) == ("shown", path, "hero-banner", None)
    assert (found.variation_id, found.audience) == ("1", "All users")
    assert [found.event_uuid] == uuids(shown, Action.SHOWN)
    assert "close" not in vars(found.request)
    # Django's AsyncClient closes a stream in the loop, but its ASGI handler doesn't.
    assert not found.in_loop or response.streaming


def test_page_waits_for_no_receiver(shown, heard):
    """A receiver is called when the server closes the request. The response is complete then."""
    request = RequestFactory().get("/", headers={"User-Agent": BROWSER})
    exposures.announce([build_event(Action.SHOWN, HERO, "42")], request)
    assert heard == []
    request.close()
    assert [found.experience_key for _, found in heard] == ["hero"]


@pytest.mark.parametrize("headers", [{"User-Agent": "Googlebot"}, {"Sec-Purpose": "prefetch"}], ids=["robot", "early"])
def test_page_that_does_not_count(shown, visit, heard, headers):
    visit("/tags/", headers=headers)
    assert heard == []


def test_visitor_without_consent(shown, visit, heard):
    """A visitor whose events don't count causes no signal, whichever way the browser reports."""
    with override_personalize(CONSENT="tests.site.deny_everything"):
        visit("/tags/", headers={"User-Agent": BROWSER})
    assert heard == []


@pytest.mark.parametrize("cache", ["default", "shared"])
def test_browser_reports(request, shown, visit, heard, cache):
    """A repeated beacon, and the link and the mark around it, report each event once, with the key."""
    if cache == "shared":
        request.getfixturevalue("shared")
    with override_personalize(IMPRESSIONS="visible"):
        page = visit("/tags/").content.decode()
        token, link = (
            re.search(r'data-moe-experience="([^"]+)"', page)[1],
            re.search(r'href="(/moe/click/[^"]+)"', page)[1],
        )
        reports = [["impression", token], ["click", token, "cta"]]
        assert heard == []
        for _ in range(2):
            visit("/moe/beacon/", method="post", data=json.dumps({"events": reports}), content_type="text/plain")
            assert visit(link).status_code == 302
    assert [(name, found.experience_key, found.request.path[:9]) for name, found in heard] == [
        ("shown", "hero-banner", "/moe/beac"),
        ("clicked", "hero-banner", "/moe/clic"),
    ]


def test_api(shown, heard):
    """A call of the API has no request. Its signals name the offerings."""
    hero = Experience("hero", {}, HERO.experience_context, offerings=(OFFER, Offering("8", {}, {"a": "b"})))
    api.experiences_shown([hero], customer_id="42")
    api.offering_clicked(hero, OFFER, customer_id="42")
    with override_personalize(OFFERING_EVENTS=True):
        api.offerings_shown([OFFER], customer_id="42")
    assert [(name, found.request, found.offering) for name, found in heard] == [
        ("shown", None, "7,8"),
        ("clicked", None, "7"),
    ]


def test_failing_receiver(shown, visit, caplog):
    """The log says once where the receiver failed, without the text of its exception. The page is complete."""

    class Receiver:
        def __call__(self, **arguments):
            raise ValueError("private")

    with connected(Receiver(), experience_shown):
        for _ in range(2):
            assert "Hello" in visit("/tags/").content.decode()
    assert caplog.text.count("Receiver of experience_shown raised ValueError at ") == 1
    assert "private" not in caplog.text


def test_signal_without_receivers(shown, visit, monkeypatch):
    """When the last receiver is gone, a page announces nothing."""
    monkeypatch.setattr(exposures, "send", None)
    with connected(lambda **arguments: None, experience_shown):
        pass
    assert visit("/tags/").status_code == 200


def test_memory_is_bounded(shown, heard, monkeypatch):
    """Without a shared cache a process remembers a limited number of UUIDs."""
    monkeypatch.setattr(exposures, "MAX_ANNOUNCED", 2)
    events = [build_event(Action.SHOWN, HERO, "42") for _ in range(3)]
    for event in (*events, events[2], events[0]):
        exposures.send([event], RequestFactory().get("/"), get_runtime())
    assert len(heard) == 4
