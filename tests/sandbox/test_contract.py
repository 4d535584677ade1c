"""The contract suite: valid requests get the documented responses, in the process and over HTTP."""

import json
import uuid
from typing import Any

import pytest

from django_moe_personalize.exceptions import AuthenticationError, ResponseError
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.types import Action, Event, ExperienceStatus
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.sandbox import schema
from tests.sandbox.ways import (
    API_KEY,
    EVENTS,
    FETCH,
    NOW,
    PHONE,
    WORKSPACE_ID,
    Way,
    action,
    batch,
    count,
    element,
    get_metadata,
    post,
    read,
)

KEYS = list(load_workspace().definitions)


def experiences(way: Way, **fields: Any) -> dict[str, Any]:
    """Return the experiences of a fetch, checked against the schema."""
    response = way(post(FETCH, fields))
    assert response.status == 200
    data = read(response)
    schema.assert_valid(data, schema.FETCH)
    return data["experiences"]


def title_of(way: Way, **fields: Any) -> str:
    """Return the Title of the hero banner."""
    return experiences(way, experience_key=["hero-banner"], **fields)["hero-banner"]["payload"]["Title"]["value"]


# -- fetch


def test_hero_banner_differs_by_visitor_and_hour(way: Way) -> None:
    """The shipped hero banner has another title for each audience."""
    titles = [
        title_of(way, utm_medium="email"),
        title_of(way, USER_AGENT=PHONE),
        title_of(way, TIME_OF_THE_DAY="08"),
        title_of(way, TIME_OF_THE_DAY="19"),
        title_of(way, TIME_OF_THE_DAY="02"),
        *(title_of(way, identifiers={"customer_id": customer}) for customer in "123"),
        title_of(way, TIME_OF_THE_DAY="13", identifiers={"customer_id": "visitor"}),
    ]
    assert len(set(titles)) == len(titles)


def test_other_visitors_get_one_of_two_variations_each_time_the_same(way: Way) -> None:
    """The A/B split serves both variations, and each visitor always gets the same variation."""
    first = [title_of(way, identifiers={"customer_id": f"v{number}"}) for number in range(40)]
    again = [title_of(way, identifiers={"customer_id": f"v{number}"}) for number in range(40)]
    assert first == again
    assert len(set(first)) == 2


def test_absent_experiences_are_a_success(way: Way) -> None:
    """Unknown, paused, scheduled and unmatched keys are absent from a 200."""
    asked = ["no-such-key", "spring-sale", "winter-gala", "cart-upsell"]
    assert experiences(way, experience_key=asked) == {}


@pytest.mark.parametrize(
    ("cart_value", "product"), [("20", None), ("50", "dry-bag-20"), ("149.99", "dry-bag-20"), ("150", "titanium-mug")]
)
def test_cart_upsell_follows_the_cart(way: Way, cart_value: str, product: str | None) -> None:
    """Rules compare numbers in strings as numbers."""
    found = experiences(way, experience_key=["cart-upsell"], cart_value=cart_value)
    payload = found.get("cart-upsell", {}).get("payload", {})
    assert payload.get("Product", {}).get("value") == product


@pytest.mark.parametrize(("category", "kind"), [("packs", list), ("camp", str), ("clothing", str)])
def test_recommendations_have_offerings_as_an_array_or_as_a_string(way: Way, category: str, kind: type) -> None:
    """The shipped workspace serves both forms of the contract, each with at least four products."""
    found = experiences(way, experience_key=["recommendations"], product_category=category)
    value = found["recommendations"]["payload"]["offerings"]["value"]
    offerings = json.loads(value) if isinstance(value, str) else value
    schema.assert_valid(offerings, schema.OFFERINGS)
    assert isinstance(value, kind)
    assert len(offerings) >= 4
    wanted = {"title", "subtitle", "image_url", "cta_label", "deeplink", "price"}
    assert all(set(each["offering_content"]["payload"]) == wanted for each in offerings)


def test_a_fetch_without_keys_gives_all_experiences_of_the_customer(way: Way) -> None:
    """A customer gets every experience that has an audience with the customer in it."""
    found = experiences(way, identifiers={"customer_id": "1"}, cart_value="200")
    assert set(found) == {"hero-banner", "promo-strip", "cart-upsell", "recommendations"}


def test_a_fetch_without_keys_and_customer_gives_only_content_for_all_users(way: Way) -> None:
    """The sandbox skips content for an audience, even if the visitor is in the audience."""
    found = experiences(way, cart_value="200", utm_medium="email")
    names = {key: entry["experience_context"]["audience_name"] for key, entry in found.items()}
    assert names == dict.fromkeys(["hero-banner", "promo-strip", "recommendations"], "All users")


def test_only_the_first_25_keys_are_answered(way: Way) -> None:
    """The sandbox ignores key 26."""
    fill = [f"unknown-{number}" for number in range(24)]
    assert set(experiences(way, experience_key=[*fill, "hero-banner"])) == {"hero-banner"}
    assert experiences(way, experience_key=[*fill, "another", "hero-banner"]) == {}


@pytest.mark.parametrize(
    "identifiers",
    [
        {"customer_id": "1"},
        {"user_identifiers": {"u_em": "ada@example.com"}},
        {"user_identifiers": {"u_mb": "+4915550000001"}},
        {"user_identifiers": "ada@example.com"},
        {"customer_id": "nobody-knows", "user_identifiers": {"u_em": "ada@example.com"}},
        {"customer_id": "", "user_identifiers": {"u_em": "ada@example.com"}},
        {"customer_id": "1", "user_identifiers": {"u_em": "grace@example.com"}},
    ],
)
def test_identifiers_find_the_customer_if_the_customer_id_does_not(way: Way, identifiers: Any) -> None:
    """All forms in the contract find Ada; a known customer id wins over the identifiers."""
    assert "Ada" in title_of(way, identifiers=identifiers)


def test_a_locale_changes_the_content_and_its_id(way: Way) -> None:
    """The sandbox falls back from the locale to its language, then to the default; the context has the locale's id."""
    german = experiences(way, experience_key=["promo-strip"], locale="de_AT")["promo-strip"]
    english = experiences(way, experience_key=["promo-strip"], locale="fr")["promo-strip"]
    assert "Versand" in german["payload"]["Text"]["value"]
    assert german["payload"]["CtaUrl"] == english["payload"]["CtaUrl"]
    assert [each["experience_context"]["moe_locale_id"] for each in (german, english)] == ["1", "0"]


# -- metadata


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("", KEYS),
        ("status=", KEYS),
        ("status=Active", KEYS[:4]),
        ("status=Paused,Scheduled", KEYS[4:]),
        ("status=Active%2CPaused", KEYS[:5]),
        ("status=Paused&status=Scheduled", KEYS[4:]),
        ("status=active", []),
        ("status=Expired", []),
        ("status=Nonsense,Paused", ["spring-sale"]),
        ("other=1", KEYS),
    ],
)
def test_metadata_filters_by_status(way: Way, query: str, keys: list[str]) -> None:
    """Statuses are case-sensitive; an unknown status matches nothing and is not an error."""
    response = way(get_metadata(query))
    data = read(response)
    assert response.status == 200
    schema.assert_valid(data, schema.METADATA)
    assert [row["experience_key"] for row in data["metadata"]["experiences"]] == keys
    assert data["metadata"]["count"] == len(keys)


# -- events


def test_events_are_accepted_and_counted_once_for_each_uuid(way: Way, shipped: Engine) -> None:
    """A retry with the same UUID gets a 200 and doesn't count again."""
    context = experiences(way, experience_key=["promo-strip"])["promo-strip"]["experience_context"]
    shown = action(attributes=context)
    clicked = action(
        action="MOE_PERSONALIZATION_MESSAGE_CLICKED", attributes={**context, "b_id": "cta", "moe_offering_id": "7"}
    )
    sent = batch(element(shown, clicked), element({**shown, "moe_event_uuid": shown["moe_event_uuid"].upper()}))
    answers = [way(post(EVENTS, sent)) for _ in range(2)]
    for answer in answers:
        assert answer.status == 200
        schema.assert_valid(read(answer), schema.EVENTS)
    assert count(shipped, "promo-strip") == (1, 1)
    entries = shipped.ledger.entries()
    assert [entry.element for entry in entries] == ["", "cta"]
    assert entries[1].attributes["moe_offering_id"] == "7"


def test_b_id_next_to_the_attributes_is_accepted_too(way: Way, shipped: Engine) -> None:
    """MoEngage's documents show ``b_id`` in this place."""
    assert way(post(EVENTS, batch(element(action(b_id="Add to Cart"))))).status == 200
    assert [entry.element for entry in shipped.ledger.entries()] == ["Add to Cart"]


def test_user_attributes_create_and_update_profiles(way: Way) -> None:
    """An event changes the attributes of a customer for the next fetch."""
    customer = str(uuid.uuid4())
    assert "Ada" not in title_of(way, identifiers={"customer_id": customer})
    way(post(EVENTS, batch(element(customer_id=customer, user_attributes={"loyalty": "gold", "ignored": []}))))
    assert "Ada" in title_of(way, identifiers={"customer_id": customer})


# -- through the client


def build_client(transport: Any, **changes: str) -> PersonalizeClient:
    """Build a client with the credentials of the sandbox."""
    return PersonalizeClient(**{"workspace_id": WORKSPACE_ID, "api_key": API_KEY, "transport": transport, **changes})


def test_client_lists_fetches_and_sends_events(transport: Any, shipped: Engine) -> None:
    """The client understands the responses to metadata, fetch and events."""
    client, deadline = build_client(transport), Deadline(10)
    active = client.fetch_metadata([ExperienceStatus.ACTIVE], deadline=deadline)
    keys = [each.experience_key for each in active.experiences]
    result = client.fetch_experiences(keys, customer_id="1", attributes={"cart_value": "80"}, deadline=deadline)
    hero, shelf = result.experiences["hero-banner"], result.experiences["recommendations"]
    events = [
        Event(Action.SHOWN, "1", hero.experience_context, int(NOW)),
        Event(Action.CLICKED, "1", {**hero.experience_context, "b_id": "cta"}, int(NOW)),
    ]
    assert client.send_events(events, deadline=deadline)
    assert client.send_events(events, deadline=deadline)
    assert set(keys) == set(result.experiences)
    assert hero["Theme"] == "gold"
    assert result.experiences["cart-upsell"]["Price"] == 24.0
    assert [offering.offering_id for offering in shelf.offerings][:1] == ["trail-pack-40"]
    assert count(shipped, "hero-banner") == (1, 1)


def test_client_raises_its_own_errors(transport: Any) -> None:
    """A 401 is an AuthenticationError, a 400 a ResponseError with the vendor's title."""
    with pytest.raises(AuthenticationError):
        build_client(transport, api_key="data-key").fetch_metadata(deadline=Deadline(10))
    with pytest.raises(ResponseError) as caught:
        build_client(transport).fetch_experiences(
            ["hero-banner"], attributes={"TIME_OF_THE_DAY": "24"}, deadline=Deadline(10)
        )
    assert (caught.value.status, caught.value.title) == (400, "Invalid Field Value")
