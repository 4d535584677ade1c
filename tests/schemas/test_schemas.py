"""Schemas: typed reads, defaults for wrong and missing variables, and templates that need no change."""

import logging

import pytest

from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.schemas import declaration
from django_moe_personalize.testing import override_experiences
from django_moe_personalize.types import DataSource

FINE = {"Title": "Hello", "CtaUrl": "/tents/", "Theme": "night", "Price": 2.5, "IsNew": True, "Tags": ["a"]}
FINE |= {"Sizes": {"S": 1}, "Extra": 7}


@pytest.fixture(autouse=True)
def shop(monkeypatch, settings):
    """Declare the schemas of the shop for one test, and serve its pages."""
    monkeypatch.setattr(declaration, "_schemas", [])
    settings.ROOT_URLCONF = "tests.schemas.shop"
    from tests.schemas import shop

    declaration._schemas[:] = [shop.Link, shop.Hero]
    return shop


def parse(shop, caplog, **changes):
    """Parse a payload with some changes. Return the experience and the words of the log."""
    payload = {name: value for name, value in {**FINE, **changes}.items() if value is not ...}
    with caplog.at_level(logging.WARNING):
        parsed = [shop.Hero.parse(Experience("hero-banner", payload)) for _ in range(2)]
    assert parsed[0] == parsed[1]
    return parsed[0], [record.getMessage() for record in caplog.records]


def test_right_experience(shop, caplog):
    """An experience that fits keeps its values, and is an experience with all its parts."""
    hero, logged = parse(shop, caplog)
    assert (hero.Title, hero.CtaUrl, hero.Rank, hero.Sizes) == ("Hello", "/tents/", None, {"S": 1})
    assert isinstance(hero, Experience)
    assert (hero["Title"], hero.source, logged) == ("Hello", DataSource.NETWORK, [])
    assert shop.Hero.parse(hero) is hero
    assert shop.Hero.parse(None) is None
    assert repr(shop.Hero.Title) == "<Variable Title>"
    with pytest.raises(AttributeError):
        hero.Titel  # noqa: B018


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CtaUrl", "javascript:alert(1)", "is text but must be a URL that is relative or leads to CONTENT_HOSTS"),
        ("CtaUrl", ..., "is missing"),
        ("Theme", "dusk", "is text but must be 'noon' or 'night'"),
        ("Rank", True, "is a boolean but must be a whole number or no value"),
        ("Price", "2", "is text but must be a number"),
        ("Price", None, "is null but must be a number"),
        ("IsNew", 1, "is a number but must be true or false"),
        ("Tags", ["a", 1], "is a list but must be a list of values that are text"),
        ("Sizes", {"S": "1"}, "is an object but must be an object of values that are a whole number"),
    ],
)
def test_wrong_variable_with_default(shop, caplog, name, value, words):
    """A wrong or missing variable has the default of the schema. One line of the log says why, without the value."""
    hero, logged = parse(shop, caplog, **{name: value})
    assert getattr(hero, name) == hero[name] == getattr(shop.Hero, name).default
    assert hero.Title == "Hello"
    where = f"The variable {name!r} of experience 'hero-banner' {words}"
    assert logged == [f"{where}, so pages show the default of Hero. Correct the content, or the schema."]


@pytest.mark.parametrize("value", [..., 3])
def test_wrong_variable_without_default(shop, caplog, value):
    """Without a default, the visitor has no experience, so that pages show their fallback."""
    hero, logged = parse(shop, caplog, Title=value)
    assert hero is None
    assert len(logged) == 1
    assert "pages show its fallback" in logged[0]


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (FINE, ["Hello /tents/ /tents/ hero-banner", "Hello /tents/", "Hello /tents/|/tents/|/tents/|-"]),
        (
            {"Title": "Hello", "CtaUrl": 1},
            ["Hello /sale/ /sale/ hero-banner", "Hello /sale/", "Hello /sale/|/sale/|/sale/|-"],
        ),
        ({"CtaUrl": "/tents/"}, ["none", "none", "no|no|/|-"]),
        (None, ["none", "none", "no|no|/|-"]),
    ],
    ids=["right", "wrong", "required", "absent"],
)
def test_pages(visit, payload, expected):
    """Views read the experience by its schema, and templates show the defaults without a change."""
    with override_experiences({} if payload is None else {"hero-banner": payload}):
        texts = [visit(f"/{name}/").content.decode() for name in ("read", "aread", "tags")]
    assert [text.replace("<!---->", "") for text in texts] == expected
