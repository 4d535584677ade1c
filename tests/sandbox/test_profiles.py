"""Profiles: attributes of customers, and how identifiers find a customer."""

from django_moe_personalize.sandbox.profiles import Profiles
from tests.sandbox.ways import build_workspace


def test_the_oldest_profile_from_events_is_dropped() -> None:
    """The customers of the workspace stay; an update makes a profile the newest."""
    profiles = Profiles(build_workspace(customers={"1": {"a": "stored"}}), max_added=2)
    profiles.update("1", {"a": "changed", "b": None})
    profiles.update("2", {"u_em": "two@example.com"})
    assert profiles.attributes("1") == {"a": "changed"}
    profiles.update("1", {"c": 1})
    profiles.update("3", {"u_em": "three@example.com"})

    assert profiles.attributes("1") == {"a": "changed", "c": 1}
    assert profiles.attributes("2") == {}
    assert profiles.resolve(None, {"u_em": "two@example.com"}) is None
    assert profiles.resolve("x", {"u_em": "three@example.com"}) == "3"
    assert profiles.resolve("3", {"u_em": "unknown@example.com"}) == "3"


def test_only_the_identifiers_of_the_workspace_find_a_customer() -> None:
    """Numbers are compared as text."""
    customers = {"1": {"card": 77, "u_em": "ada@example.com"}}
    profiles = Profiles(build_workspace(customers=customers, identity_resolution=["card"]))

    assert profiles.resolve(None, {"card": "77"}) == "1"
    assert profiles.resolve(None, "77") == "1"
    assert profiles.resolve(None, {"u_em": "ada@example.com"}) is None
    assert profiles.resolve(None, "") is None
