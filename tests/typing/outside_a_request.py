"""The calls of a mail, a task or a shell, typed: checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

from django_moe_personalize import api
from django_moe_personalize.moengage.types import (
    DataSource,
    Experience,
    ExperienceFailure,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
    Offering,
)


def metadata() -> None:
    """Show which experiences there are."""
    found = api.fetch_experiences_meta(["active"])
    assert_type(found, ExperiencesMetadata)
    assert_type(found.source, DataSource)
    assert_type(found.experiences, tuple[ExperienceMeta, ...])
    assert_type(found.experiences[0].status, ExperienceStatus)


def experiences() -> None:
    """Show what one customer gets, and why the rest is absent."""
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
    """Show what is reported."""
    api.experiences_shown(result.experiences, customer_id="42")
    api.experience_clicked(hero, customer_id="42", element="cta")
    api.offerings_shown([offering], customer_id="42")
    api.offering_clicked(hero, offering, customer_id="42")
