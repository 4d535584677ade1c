"""Experiences as JSON: the endpoint, and the serializer for Django REST framework."""

import json
from types import ModuleType

import pytest
from asgiref.sync import async_to_sync
from django.test import RequestFactory
from django.urls import include, path
from rest_framework.response import Response
from rest_framework.views import APIView

from django_moe_personalize import views
from django_moe_personalize.contrib.json import MAX_KEYS, experiences
from django_moe_personalize.contrib.rest_framework import ExperienceSerializer
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.switch_store import Entry
from django_moe_personalize.testing import override_personalize
from tests.fetching.virtual_cache import build
from tests.rendering.conftest import shown  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("urls", "shown")


class Hero(APIView):
    """Return the hero as an API does."""

    def get(self, request):
        hero = request.personalization.get("hero")
        return Response(ExperienceSerializer(hero, elements=["buy"], context={"request": request}).data)


@pytest.fixture
def urls(settings):
    settings.REST_FRAMEWORK = {"DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]}
    settings.ROOT_URLCONF = module = ModuleType("urls_of_one_test")
    module.urlpatterns = [
        path("moe/", include("django_moe_personalize.urls")),
        path("moe/", include("django_moe_personalize.contrib.json")),
        path("hero/", Hero.as_view()),
    ]


def report(visit, *events):
    body = json.dumps({"events": events})
    assert visit("/moe/beacon/", method="post", data=body, content_type="text/plain").status_code == 204


def test_experiences(visit, shown):  # noqa: F811 - the fixture
    """The response is private and counts nothing. The client reports with the token, each report once."""
    response = visit("/moe/experiences/?key=hero&key=nope&key=offers&key=hero")
    answer = response.json()
    hero, offers = answer["experiences"]["hero"], answer["experiences"]["offers"]
    assert list(answer["experiences"]) == ["hero", "nope", "offers"]
    assert answer["experiences"]["nope"] is None
    assert (hero["payload"]["Title"], answer["beacon"]) == ("Hello", "/moe/beacon/")
    assert [each["offering_id"] for each in offers["offerings"]] == ["offer-1", "offer-2"]
    assert response["Cache-Control"] == "private, no-store"
    assert "Cookie" in response["Vary"]
    assert shown.impressions == {}
    for _ in range(2):
        report(visit, ["impression", hero["token"]], ["click", hero["token"], "Url"], ["click", hero["token"], "evil"])
    assert shown.impressions == {"hero": 1}
    assert sum("CLICK" in entry.action.upper() for entry in shown.engine.ledger.entries()) == 1


def test_an_experience_that_is_switched_off(visit):
    """The client renders its own default."""
    get_switch().change((Entry("hero", True, None, "ada", 1.0),))
    found = visit("/moe/experiences/?key=hero&key=offers").json()["experiences"]
    assert (found["hero"], bool(found["offers"])) == (None, True)


@pytest.mark.parametrize(
    "query",
    ["", "key=", "key=a%00b", "key=" + "a" * 101, "&".join(f"key=k{n}" for n in range(MAX_KEYS + 1))],
    ids=["none", "empty", "null", "long", "many"],
)
def test_wrong_keys(visit, query):
    """Wrong keys are a 400 and ask MoEngage nothing."""
    assert visit("/moe/experiences/?" + query).status_code == 400


@pytest.mark.parametrize(("method", "status"), [("head", 200), ("post", 405), ("options", 405), ("delete", 405)])
def test_methods(visit, method, status):
    """The endpoint only reads."""
    response = visit("/moe/experiences/?key=hero", method=method)
    assert (response.status_code, "no-store" in response["Cache-Control"] or status == 405) == (status, True)


def test_limit(visit, monkeypatch):
    """A visitor with too many requests gets a 429, also without cookies."""
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 2)
    statuses = []
    for _ in range(4):
        statuses.append(visit("/moe/experiences/?key=hero").status_code)
        visit.forget_cookies()
    assert statuses == [200, 200, 429, 429]


def test_without_consent_or_middleware(visit):
    """Without consent there is no token, and without the middleware no experience."""
    with override_personalize(CONSENT="tests.site.deny_everything"):
        assert visit("/moe/experiences/?key=hero").json()["experiences"] == {"hero": None}
    response = async_to_sync(experiences)(RequestFactory().get("/?key=hero"))
    assert json.loads(response.content)["experiences"] == {"hero": None}


def test_serializer(visit, shown):  # noqa: F811 - the fixture
    """REST framework's serializer gives the same, with the elements of the site."""
    response = visit("/hero/")
    token = response.json()["token"]
    assert (response.json()["payload"]["Title"], response["Cache-Control"]) == ("Hello", "private, no-store")
    report(visit, ["impression", token], ["click", token, "buy"])
    assert shown.impressions == {"hero": 1}


def test_serializer_without_a_request():
    """As in a command: the content is there, and nothing can be reported."""
    found = ExperienceSerializer(build("hero", {"moe_variation_id": "2"}, Title="Hello")).data
    assert (found["variation_id"], found["payload"], found["token"]) == ("2", {"Title": "Hello"}, None)
