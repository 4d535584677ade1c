"""The calls of the vendor's SDKs, without a request."""

import json

import pytest
from asgiref.sync import async_to_sync

from django_moe_personalize import api as module
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.exceptions import APIError, ServerError, TransportError
from django_moe_personalize.fetching.upstream import get_breaker
from django_moe_personalize.moengage.messages import Response
from django_moe_personalize.moengage.types import (
    DataSource,
    Experience,
    ExperienceFailure,
    ExperienceStatus,
    FailureReason,
    Offering,
)
from django_moe_personalize.testing import override_experiences, override_personalize

HERO_CONTEXT = {"cid": "1", "experience": "Hero"}


class Twins:
    """The calls of the module by name, or their async twins."""

    def __init__(self, prefix):
        self._prefix = prefix

    def __getattr__(self, name):
        call = getattr(module, self._prefix + name)
        return async_to_sync(call) if self._prefix else call


@pytest.fixture(params=["", "a"], ids=["sync", "async"])
def api(request):
    """Give the calls, once as they are and once as their async twins."""
    return Twins(request.param)


def test_metadata_lists_experiences_by_status(api, upstream):
    """Which experiences exist is asked once, and later answered from the cache, of any status."""
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
def test_unknown_status_is_a_mistake(api, status):
    """A status that is none names those there are."""
    with pytest.raises(ValueError, match="'active', 'paused', 'scheduled'"):
        api.fetch_experiences_meta([status])


def test_result_holds_experiences_and_failures(api, upstream):
    """What the customer gets is in experiences; why the rest is absent is data."""
    result = api.fetch_experiences(["hero-banner", "spring-sale", "winter-gala", "nope"], customer_id="1")
    assert "Ada" in result.experiences["hero-banner"]["Title"]
    assert result.experiences["hero-banner"].source is DataSource.NETWORK
    assert set(result.failures) == {
        ExperienceFailure(FailureReason.EXPERIENCE_NOT_ACTIVE, ("spring-sale", "winter-gala")),
        ExperienceFailure(FailureReason.INVALID_EXPERIENCE_KEY, ("nope",)),
    }
    assert api.fetch_experience("hero-banner", customer_id="1").source is DataSource.CACHE
    assert api.fetch_experience("nope", customer_id="1") is None


def test_attributes_and_identifiers_travel(api, upstream):
    """In-session attributes and identifiers reach the vendor as the contract says."""
    api.fetch_experiences(
        ["cart-upsell"], user_identifiers={"u_em": "ada@example.com"}, attributes={"cart_value": "100"}
    )
    [body] = upstream.fetches
    assert body == {
        "experience_key": ["cart-upsell"],
        "identifiers": {"user_identifiers": {"u_em": "ada@example.com"}},
        "cart_value": "100",
    }


def test_customer_outside_the_audience(api, upstream):
    """An active experience that the customer does not get says USER_NOT_IN_SEGMENT."""
    result = api.fetch_experiences(["cart-upsell"], customer_id="9", attributes={"cart_value": "1"})
    assert result.experiences == {}
    assert result.failures == (ExperienceFailure(FailureReason.USER_NOT_IN_SEGMENT, ("cart-upsell",)),)


def test_server_that_sends_reasons_wins(api, upstream):
    """Reasons in the answer are taken before those worked out from the metadata."""
    body = {
        "experiences": {},
        "failures": [{"reason": "USER_IN_GLOBAL_CONTROL_GROUP", "experience_keys": ["hero-banner"]}],
    }
    upstream.respond(200, json.dumps(body).encode())
    result = api.fetch_experiences(["hero-banner"], customer_id="1")
    assert result.failures == (ExperienceFailure(FailureReason.USER_IN_GLOBAL_CONTROL_GROUP, ("hero-banner",)),)


def test_reason_without_metadata(api, upstream):
    """When the metadata cannot be had the reason is the vendor's fallback."""
    upstream.answer = lambda request: (
        Response(200, {}, b'{"experiences": {}}') if "fetch" in request.path else Response(500)
    )
    result = api.fetch_experiences(["hero-banner"], customer_id="1")
    assert result.failures == (ExperienceFailure(FailureReason.PERSONALIZATION_FAILED, ("hero-banner",)),)


@pytest.mark.parametrize("keys", ["hero-banner", [""], [None], [7]], ids=repr)
def test_keys_that_are_none(api, keys):
    """Keys are a list of non-empty strings, and the error shows one."""
    with pytest.raises(ValueError, match=r'\["hero-banner"\]'):
        api.fetch_experiences(keys)


def test_no_keys(api, upstream):
    """Nothing asked for is nothing, without a call."""
    assert api.fetch_experiences([]).experiences == {}
    assert upstream.requests == []


def test_many_keys_are_split(api, upstream):
    """Sixty keys travel in three calls of at most 25, repeated ones once."""
    keys = [f"key-{n}" for n in range(60)]
    result = api.fetch_experiences([*keys, *keys], customer_id="1")
    assert sorted(len(body["experience_key"]) for body in upstream.fetches) == [10, 25, 25]
    assert sorted(result.failures[0].experience_keys) == sorted(keys)


def test_vendor_that_fails_is_an_exception(api, upstream):
    """Outside a page a failing vendor is the caller's to handle; nothing of the visitor is in the message."""
    upstream.refuse()
    with pytest.raises(TransportError, match="refused") as caught:
        api.fetch_experiences(["hero-banner"], customer_id="customer-4711")
    assert "customer-4711" not in str(caught.value)
    with pytest.raises(APIError):
        api.fetch_experiences_meta()


def test_stale_answers_serve(api, upstream):
    """When the vendor fails what is cached serves."""
    with override_personalize(CACHE_TTL=0):
        api.fetch_experiences(["hero-banner"], customer_id="1")
        upstream.respond(500)
        assert api.fetch_experiences(["hero-banner"], customer_id="1").experiences
        with pytest.raises(ServerError):
            api.fetch_experiences(["hero-banner", "promo-strip"], customer_id="1")


def test_cached_absence_serves_too(api, upstream):
    """An absent answer is an answer: while it is known, a failing vendor is no error."""
    with override_personalize(CACHE_TTL=0):
        api.fetch_experiences(["nope"], customer_id="1")
        upstream.refuse()
        assert api.fetch_experiences(["nope"], customer_id="1").failures


def test_without_credentials(api):
    """A call without credentials says which are missing."""
    with override_personalize(SANDBOX=False), pytest.raises(ConfigurationError, match="WORKSPACE_ID"):
        api.fetch_experiences(["hero-banner"])


def test_disabled(api, upstream):
    """With ENABLED off nothing is asked or sent."""
    hero = api.fetch_experiences(["hero-banner"], customer_id="1").experiences["hero-banner"]
    upstream.requests.clear()
    with override_personalize(ENABLED=False):
        result = api.fetch_experiences(["hero-banner"], customer_id="1")
        assert result.failures == (ExperienceFailure(FailureReason.PERSONALIZATION_FAILED, ("hero-banner",)),)
        assert api.fetch_experiences_meta().experiences == ()
        api.experience_clicked(hero, customer_id="1")
    assert upstream.requests == []


def test_events_are_reported(api, upstream):
    """Shown and clicked experiences and offerings are counted as the contract says."""
    result = api.fetch_experiences(["hero-banner", "recommendations"], customer_id="1")
    hero, recommendations = result.experiences["hero-banner"], result.experiences["recommendations"]
    api.experiences_shown(result.experiences, customer_id="1")
    api.experiences_shown([hero], customer_id="2")
    api.experience_clicked(hero, customer_id="1", element="cta")
    api.offerings_shown(recommendations.offerings, customer_id="1")
    api.offering_clicked(recommendations, recommendations.offerings[0], customer_id="1")
    assert upstream.count("hero-banner") == (2, 1)
    assert upstream.count("recommendations") == (1, 1)
    offering_click = upstream.engine.ledger.entries()[-1]
    assert offering_click.element == recommendations.offerings[0].offering_id
    assert offering_click.attributes["moe_offering_id"] == recommendations.offerings[0].context["moe_offering_id"]


def test_native_offering_events(api):
    """A workspace in which the vendor has enabled them gets the offerings' own two events."""
    offering = Offering("o-1", {}, {"moe_offering_id": "o-1"}, {})
    experience = Experience("hero", {}, HERO_CONTEXT, offerings=(offering,))
    delivery = {"BACKEND": "django_moe_personalize.delivery.dummy.DummyDelivery"}
    with override_personalize(OFFERING_EVENTS=True, DELIVERY=delivery):
        from django_moe_personalize.delivery.base import get_delivery

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
def test_event_without_a_customer_is_a_mistake(api, customer_id):
    """Events belong to a customer."""
    with pytest.raises(ValueError, match="customer_id must be a non-empty string"):
        api.experiences_shown([], customer_id=customer_id) or api.experience_clicked(None, customer_id=customer_id)


def test_experience_without_a_context_is_not_reported(api):
    """What the vendor sent without a context cannot be counted, and is left out rather than refused."""
    with override_experiences({}) as seen:
        api.experience_clicked(Experience("hero", {}), customer_id="1")
    assert seen.engine.ledger.entries() == []


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
def test_what_the_wire_cannot_carry(api, upstream, arguments, message):
    """A caller's mistake is a ValueError that says what to write, and no failure of the vendor's."""
    for _ in range(6):
        with pytest.raises(ValueError, match=message):
            api.fetch_experiences(["hero-banner"], **arguments)
    assert get_breaker().state == "closed"
    assert upstream.requests == []


def test_experiences_and_offerings_read_like_mappings(api, upstream):
    """Asking whether a variable is there, and going through them, works on both."""
    result = api.fetch_experiences(["recommendations"], customer_id="1")
    experience = result.experiences["recommendations"]
    offering = experience.offerings[0]
    assert ("Title" in experience, "offerings" in experience, "nope" in experience) == (True, True, False)
    assert set(experience) == set(experience.payload)
    assert ("title" in offering, "nope" in offering, set(offering)) == (True, False, set(offering.content))
