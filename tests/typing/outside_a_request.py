"""Calls from an e-mail, a task or a shell: mypy checks them, nothing runs them."""

from collections.abc import ItemsView, Mapping
from dataclasses import replace
from typing import Any, assert_type

from django_moe_personalize import api
from django_moe_personalize.types import (
    DataSource,
    Event,
    Experience,
    ExperienceFailure,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
    Offering,
    RateLimitedError,
    ResponseError,
)


def metadata() -> None:
    """Show the experiences of the workspace."""
    found = api.fetch_experiences_meta(["active"])
    assert_type(found, ExperiencesMetadata)
    assert_type(found.source, DataSource)
    assert_type(found.experiences, tuple[ExperienceMeta, ...])
    assert_type(found.experiences[0].status, ExperienceStatus)


def experiences() -> None:
    """Show a customer's experiences, and the reasons why others are absent."""
    result = api.fetch_experiences(["hero-banner"], customer_id="42", attributes={"cart_value": "500"})
    assert_type(result, ExperiencesResult)
    assert_type(result.experiences, Mapping[str, Experience])
    assert_type(result.failures, tuple[ExperienceFailure, ...])
    for failure in result.failures:
        assert_type(failure.reason, FailureReason)
        assert_type(failure.experience_keys, tuple[str, ...])
    api.fetch_experiences(["hero-banner"], user_identifiers={"u_em": "ada@example.com"})
    api.fetch_experiences("hero-banner", customer_id=42)  # type: ignore[arg-type]


def tracking(result: ExperiencesResult, hero: Experience, offering: Offering) -> None:
    """Show how impressions and clicks are reported."""
    api.experiences_shown(result.experiences, customer_id="42")
    api.experience_clicked(hero, customer_id="42", element="cta")
    api.offerings_shown([offering], customer_id="42")
    api.offering_clicked(hero, offering, customer_id="42")


def values(hero: Experience, offering: Offering, event: Event) -> None:
    """Show experiences and offerings as mappings and as data."""
    mapping: Mapping[str, Any] = hero
    assert_type(hero["Title"], Any)
    assert_type(hero.items(), ItemsView[str, Any])
    assert_type("Title" in hero, bool)
    assert_type(dict(hero), dict[str, Any])
    assert_type(hero.offerings, tuple[Offering, ...])
    assert_type(hero.to_dict(), dict[str, Any])
    assert_type(offering["title"], Any)
    assert_type(offering.to_dict(), dict[str, Any])
    assert_type(replace(hero, source=DataSource.CACHE), Experience)
    assert_type(Experience(experience_key="hero", payload={"Title": "Hi"}), Experience)
    assert_type(Offering(offering_id="1", content=mapping), Offering)
    assert_type(Event.read(event.element), Event)
    hero.payload = {}  # type: ignore[misc]
    mapping["Title"] = "Hi"  # type: ignore[index]


def errors(error: ResponseError) -> None:
    """Show the attributes of an error."""
    assert_type(error.status, int)
    assert_type(error.retryable, bool)
    if isinstance(error, RateLimitedError):
        assert_type(error.retry_after, float | None)
