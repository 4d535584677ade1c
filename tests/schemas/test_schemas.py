"""Schemas: typed reads, defaults for wrong and missing variables, and templates that need no change."""

import logging
import sys

import pytest
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.test import override_settings

from django_moe_personalize.moengage.types import DataSource, Experience
from django_moe_personalize.planning import KEYS_ATTRIBUTE
from django_moe_personalize.schemas import declaration
from django_moe_personalize.testing import override_experiences

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
        hero.Headline  # noqa: B018


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


def test_reads_in_code(visit, shop):
    """An absent experience is a KeyError, or the default. A view may read before it has declared the key."""
    with override_experiences({"hero-banner": FINE}):
        assert visit("/index/").content == b"Hello"
        assert visit("/undeclared/").content.endswith(b" Hello")
    with override_experiences({}), pytest.raises(KeyError):
        visit("/index/")
    assert getattr(shop.aread, KEYS_ATTRIBUTE) == ("hero-banner",)


MISTAKES = """
from __future__ import annotations
from typing import TYPE_CHECKING, ClassVar
from django_moe_personalize.schemas import ExperienceSchema
if TYPE_CHECKING:
    from decimal import Decimal

class NoKey(ExperienceSchema):
    Title: str

class Number(ExperienceSchema):
    key = 7

class Base(ExperienceSchema):
    Broken: set

class Hero(Base):
    key = "hero-banner"
    Title: str = 3
    offerings: list
    Price: Decimal
    Text: list[str, int]
    Label = "Go"
    _private: int
    note: ClassVar[str] = "no variable"

class Again(ExperienceSchema):
    key = "hero-banner"
    Short: str

class Short(Again):
    key = "four"
"""
WORDS = [
    ("E020", "The schema NoKey has no key, and no other schema inherits from it (experiences.py:8)."),
    ("E020", "The key of the schema Number isn't a string (experiences.py:12)."),
    ("E021", "The variable Broken of Base has an unusable annotation (set is not an annotation of a schema) (…:15)."),
    ("E022", "The default of Title in Hero is a number, but must be text (experiences.py:19)."),
    ("E021", "The variable offerings of Hero has the name of an attribute or method of an experience (…:20)."),
    ("E021", "The variable Price of Hero has an annotation with an unknown name (Decimal) (experiences.py:21)."),
    ("E021", "The variable Text of Hero has an unusable annotation (list[str, int] is not an annotation of …:22)."),
    ("E021", "The variable Label of Hero has no annotation, so it isn't a variable (experiences.py:23)."),
    ("E020", "The schemas Hero and Again have the same key 'hero-banner' (experiences.py:28)."),
    ("W016", "The experience key 'four' in the schema Short has 4 characters, but MoEngage takes 5 to 50."),
]


def test_checks(tmp_path, monkeypatch):
    """Each mistake in a file ``experiences.py`` of an app is one message, with its place and its fix."""
    (tmp_path / "schema_shop").mkdir()
    (tmp_path / "schema_shop" / "__init__.py").write_text("")
    (tmp_path / "schema_shop" / "experiences.py").write_text(MISTAKES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path / "schema_shop")
    monkeypatch.setattr(declaration, "_schemas", [])
    with override_settings(INSTALLED_APPS=[*django_settings.INSTALLED_APPS, "schema_shop"]):
        found = [
            message
            for message in run_checks(tags=["moe_personalize"])
            if message.id[-4:] in ("E020", "E021", "E022", "W016")
        ]
    module = sys.modules.pop("schema_shop.experiences")
    texts = sorted(f"{message.id[-4:]} {message.msg}" for message in found)
    assert len(texts) == len(WORDS), "\n".join(texts)
    for text, (number, words) in zip(texts, sorted(WORDS), strict=True):
        start, _, end = words.partition("…")
        assert text.startswith(f"{number} {start}")
        assert text.endswith(end)
    hero = module.Hero.parse(Experience("hero-banner", {"Title": 1, "Price": 2, "Text": 3, "Broken": 4}))
    assert (hero.Title, hero.Price, hero.Text, hero.Broken) == (3, 2, 3, 4)
    # The server reloads a module that has changed.
    exec(compile(MISTAKES, "experiences.py", "exec"), {"__name__": "schema_shop.experiences"})  # noqa: S102 - ours
    assert len(declaration._schemas) == 6
