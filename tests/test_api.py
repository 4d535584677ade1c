"""The functions of api.py and their async twins."""

import inspect
import json
from types import SimpleNamespace

import pytest
from asgiref.sync import async_to_sync

from django_moe_personalize import api as module
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.exceptions import APIError, ServerError, TransportError
from django_moe_personalize.fetching.upstream import get_breaker
from django_moe_personalize.moengage.http1 import Response
from django_moe_personalize.testing import override_experiences, override_personalize
from django_moe_personalize.types import (
    DataSource,
    Experience,
    ExperienceFailure,
    ExperienceStatus,
    FailureReason,
    Offering,
)

HERO_CONTEXT = {"cid": "1", "experience": "Hero"}


@pytest.fixture(params=["", "a"], ids=["sync", "async"])
def api(request):
    """Give the sync functions, and once more the async twins."""
    functions = dict(inspect.getmembers(module, inspect.isfunction))
    twins = {name[1:]: async_to_sync(call) for name, call in functions.items() if inspect.iscoroutinefunction(call)}
    return SimpleNamespace(**twins) if request.param else module


def test_every_call_has_a_twin():
    """A twin has the name and the parameters of its call."""
    calls = [name for name in vars(module) if inspect.isfunction(vars(module)[name]) and not name.startswith("_")]
    calls = [name for name in calls if vars(module)[name].__module__ == module.__name__]
    sync = {name for name in calls if not inspect.iscoroutinefunction(vars(module)[name])}
    assert {name for name in calls if name not in sync} == {f"a{name}" for name in sync}
    assert all(vars(module)[f"a{name}"].__name__ == f"a{name}" for name in sync)


# Experiences


def test_metadata_by_status(api, upstream):
    """MoEngage is asked once. Later calls, for any status, read the cache."""
    active = api.fetch_experiences_meta(["active"])
    assert active.source is DataSource.NETWORK
    assert {meta.status for meta in active.experiences} == {ExperienceStatus.ACTIVE}
    paused = api.fetch_experiences_meta([ExperienceStatus.PAUSED])
    assert paused.source is DataSource.CACHE
    assert [meta.experience_key for meta in paused.experiences] == ["spring-sale"]
    everything = api.fetch_experiences_meta()
    assert {"hero-banner", "spring-sale", "winter-gala"} <= {meta.experience_key for meta in everything.experiences}
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("status", ["Activ", "unknown", ""])
def test_unknown_status(api, status):
    """The error names the valid statuses."""
    with pytest.raises(ValueError, match="'active', 'paused', 'scheduled'"):
        api.fetch_experiences_meta([status])


def test_experiences_and_failures(api, upstream):
    """The result has the customer's experiences, and the reasons for the absent keys."""
    customer = {"customer_id": "1", "attributes": {"cart_value": "1"}}
    result = api.fetch_experiences(["hero-banner", "spring-sale", "winter-gala", "cart-upsell", "nope"], **customer)
    assert "Ada" in result.experiences["hero-banner"]["Title"]
    assert result.experiences["hero-banner"].source is DataSource.NETWORK
    assert set(result.failures) == {
        ExperienceFailure(FailureReason.EXPERIENCE_NOT_ACTIVE, ("spring-sale", "winter-gala")),
        ExperienceFailure(FailureReason.INVALID_EXPERIENCE_KEY, ("nope",)),
        ExperienceFailure(FailureReason.USER_NOT_IN_SEGMENT, ("cart-upsell",)),
    }
    assert api.fetch_experience("hero-banner", **customer).source is DataSource.CACHE
    assert api.fetch_experience("nope", **customer) is None


def test_attributes_and_identifiers(api, upstream):
    """MoEngage gets attributes and identifiers as the contract says."""
    api.fetch_experiences(
        ["cart-upsell"], user_identifiers={"u_em": "ada@example.com"}, attributes={"cart_value": "100"}
    )
    (body,) = upstream.fetches
    assert body == {
        "experience_key": ["cart-upsell"],
        "identifiers": {"user_identifiers": {"u_em": "ada@example.com"}},
        "cart_value": "100",
    }


def test_reasons_of_the_response(api, upstream):
    """The reasons of MoEngage's response win over the reasons of the metadata."""
    failure = {"reason": "USER_IN_GLOBAL_CONTROL_GROUP", "experience_keys": ["hero-banner"]}
    upstream.respond(200, json.dumps({"experiences": {}, "failures": [failure]}).encode())
    result = api.fetch_experiences(["hero-banner"], customer_id="1")
    assert result.failures == (ExperienceFailure(FailureReason.USER_IN_GLOBAL_CONTROL_GROUP, ("hero-banner",)),)


def test_reason_without_metadata(api, upstream):
    """If the metadata can't be read, the reason is the contract's fallback."""
    upstream.answer = lambda request: (
        Response(200, {}, b'{"experiences": {}}') if "fetch" in request.path else Response(500)
    )
    result = api.fetch_experiences(["hero-banner"], customer_id="1")
    assert result.failures == (ExperienceFailure(FailureReason.PERSONALIZATION_FAILED, ("hero-banner",)),)


@pytest.mark.parametrize("keys", ["hero-banner", [""], [None], [7]], ids=repr)
def test_wrong_keys(api, keys):
    """Keys are a list of non-empty strings, and the error shows one."""
    with pytest.raises(ValueError, match=r'\["hero-banner"\]'):
        api.fetch_experiences(keys)


def test_many_keys(api, upstream):
    """Sixty keys, also of a generator, travel in three calls of at most 25, each key once. No keys need no call."""
    assert api.fetch_experiences([]).experiences == {}
    assert upstream.requests == []
    keys = [f"key-{n}" for n in range(60)]
    result = api.fetch_experiences((key for key in [*keys, *keys]), customer_id="1")
    assert sorted(len(body["experience_key"]) for body in upstream.fetches) == [10, 25, 25]
    assert sorted(result.failures[0].experience_keys) == sorted(keys)


def test_failing_vendor(api, upstream):
    """The caller gets the error, which quotes nothing of the customer."""
    upstream.refuse()
    with pytest.raises(TransportError, match="refused") as caught:
        api.fetch_experiences(["hero-banner"], customer_id="customer-4711")
    assert "customer-4711" not in str(caught.value)
    with pytest.raises(APIError):
        api.fetch_experiences_meta()


def test_cached_answers_while_the_vendor_fails(api, upstream):
    """Stale answers are results, also those without an experience. A key without an answer is an error."""
    with override_personalize(CACHE_TTL=0):
        api.fetch_experiences(["hero-banner", "nope"], customer_id="1")
        upstream.respond(500)
        result = api.fetch_experiences(["hero-banner", "nope"], customer_id="1")
        assert (list(result.experiences), result.failures[0].experience_keys) == (["hero-banner"], ("nope",))
        with pytest.raises(ServerError):
            api.fetch_experiences(["hero-banner", "promo-strip"], customer_id="1")


def test_without_credentials(api):
    """The error names the missing credentials."""
    with override_personalize(SANDBOX=False), pytest.raises(ConfigurationError, match="WORKSPACE_ID"):
        api.fetch_experiences(["hero-banner"])


def test_disabled(api, upstream):
    """With ENABLED off the calls ask and report nothing."""
    hero = api.fetch_experience("hero-banner", customer_id="1")
    upstream.forget()
    with override_personalize(ENABLED=False):
        result = api.fetch_experiences(["hero-banner"], customer_id="1")
        assert result.failures == (ExperienceFailure(FailureReason.PERSONALIZATION_FAILED, ("hero-banner",)),)
        assert api.fetch_experience("hero-banner", customer_id="1") is None
        assert api.fetch_experiences_meta().experiences == ()
        api.experience_clicked(hero, customer_id="1")
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"customer_id": 42}, "customer_id must be a string, not int"),
        ({"attributes": {"cart_value": 500}}, r"attributes\['cart_value'\] must be a string, not int"),
        ({"user_identifiers": {"u_em": None}}, r"user_identifiers\['u_em'\] must be a string, not NoneType"),
        ({"attributes": {1: "x"}}, r"attributes\[1\]"),
        ({"attributes": {"identifiers": "x"}}, "An attribute can't be named identifiers"),
    ],
    ids=["id", "attribute", "identifier", "name", "reserved"],
)
def test_arguments_that_cannot_be_sent(api, upstream, arguments, message):
    """The error tells the developer how to write the argument. MoEngage isn't called."""
    for _ in range(6):
        with pytest.raises(ValueError, match=message):
            api.fetch_experiences(["hero-banner"], **arguments)
    assert get_breaker().state == "closed"
    assert upstream.requests == []


# Events


def test_events(api, upstream):
    """Impressions and clicks of experiences and offerings count as the contract says."""
    result = api.fetch_experiences(["hero-banner", "recommendations"], customer_id="1")
    hero, recommendations = result.experiences["hero-banner"], result.experiences["recommendations"]
    api.experiences_shown(result.experiences, customer_id="1")
    api.experiences_shown([hero], customer_id="2")
    api.experience_clicked(hero, customer_id="1", element="cta")
    api.offerings_shown(recommendations.offerings, customer_id="1")
    api.offering_clicked(recommendations, recommendations.offerings[0], customer_id="1")
    assert upstream.count("hero-banner") == (2, 1)
    assert upstream.count("recommendations") == (1, 1)
    click = upstream.engine.ledger.entries()[-1]
    assert click.element == recommendations.offerings[0].offering_id
    assert click.attributes["moe_offering_id"] == recommendations.offerings[0].context["moe_offering_id"]


def test_id_that_moengage_forbids(api, upstream, caplog):
    """The log says so once, and the id is used nevertheless."""
    hero = api.fetch_experience("hero-banner", customer_id="1")
    for _ in range(2):
        api.experience_clicked(hero, customer_id="guest")
    assert upstream.fetches[0]["identifiers"] == {"customer_id": "1"}
    assert upstream.count("hero-banner") == (0, 1 + 1)
    [message] = caplog.messages
    assert "MoEngage forbids a customer id that comes from django_moe_personalize.api:" in message


def test_offering_events(api):
    """With OFFERING_EVENTS, offerings have events of their own."""
    offering = Offering("o-1", {}, {"moe_offering_id": "o-1"}, {})
    experience = Experience("hero", {}, HERO_CONTEXT, offerings=(offering,))
    delivery = {"BACKEND": "django_moe_personalize.delivery.dummy.DummyDelivery"}
    with override_personalize(OFFERING_EVENTS=True, DELIVERY=delivery):
        api.experiences_shown([experience], customer_id="1")
        api.offerings_shown([offering], customer_id="1")
        api.offering_clicked(experience, offering, customer_id="1")
        events = [(event.action.value, dict(event.attributes)) for event in get_delivery().events]
    assert events == [
        ("MOE_PERSONALIZATION_MESSAGE_SHOWN", HERO_CONTEXT),
        ("MOE_OFFERING_SHOWN", {"moe_offering_id": "o-1"}),
        ("MOE_OFFERING_CLICKED", {"moe_offering_id": "o-1", "b_id": "o-1"}),
    ]


@pytest.mark.parametrize("customer_id", ["", None, 42])
def test_events_without_a_customer(api, customer_id):
    """Every event belongs to a customer."""
    hero = Experience("hero", {}, HERO_CONTEXT)
    for call in (lambda: api.experiences_shown([hero], customer_id=customer_id), lambda: api.erase(customer_id=7)):
        with pytest.raises(ValueError, match="customer_id must be a non-empty string"):
            call()


def test_erasing_a_customer(api):
    """Events that are sent already can't be erased."""
    assert api.erase(customer_id="1") == 0


def test_one_experience_is_not_a_list(api):
    """An Experience is a mapping of its payload, so experiences_shown() refuses it."""
    with pytest.raises(ValueError, match=r"write \[experience\]"):
        api.experiences_shown(Experience("hero", {}, HERO_CONTEXT), customer_id="1")


def test_experience_without_a_context(api):
    """MoEngage can't count such an event, so the event isn't reported."""
    with override_experiences({}) as seen:
        api.experience_clicked(Experience("hero", {}), customer_id="1")
    assert seen.engine.ledger.entries() == []
