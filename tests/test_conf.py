"""The settings: where they come from, and what they become."""

import dataclasses
import ipaddress
import os
import pathlib
import subprocess
import sys
from zoneinfo import ZoneInfo

import pytest

from django_moe_personalize.conf import Backend, get_settings, readers, settings
from django_moe_personalize.moengage.client import SYSTEM_FIELDS
from tests.configured import SECRET, _clean_environment, configure, from_environment, mistake  # noqa: F401 - a fixture


def test_defaults_are_those_of_the_documents(settings):
    """A site that sets nothing gets the documented defaults, without MOE_PERSONALIZE at all."""
    del settings.MOE_PERSONALIZE
    found = get_settings()
    assert {field.name: getattr(found, field.name) for field in dataclasses.fields(found)} == {
        "enabled": True,
        "workspace_id": "",
        "api_key": "",
        "data_center": "",
        "base_url": "",
        "sandbox": False,
        "experiences": {},
        "identify": "",
        "anonymous_id": True,
        "attributes": (),
        "query_parameters": ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content"),
        "time_zone": ZoneInfo("UTC"),
        "trusted_proxies": (),
        "ip_precision": "full",
        "consent": "",
        "deadline": 0.3,
        "max_concurrent_fetches": 16,
        "cache": "default",
        "cache_ttl": 60.0,
        "cache_stale_ttl": 600.0,
        "vary_cache_on": None,
        "metadata_ttl": 300.0,
        "impressions": "render",
        "delivery": Backend("django_moe_personalize.delivery.thread.ThreadDelivery", {}),
        "cache_control": "private, no-store",
        "transport": Backend("django_moe_personalize.moengage.transport.RequestsTransport", {}),
        "content_hosts": (),
        "offering_events": False,
    }


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("ENABLED", False, False, id="boolean"),
        pytest.param("WORKSPACE_ID", " ABC_DEBUG\n", "ABC_DEBUG", id="credential is stripped"),
        pytest.param("API_KEY", "a:b", "a:b", id="key may hold a colon"),
        pytest.param("DATA_CENTER", "101", "101", id="data centre"),
        pytest.param("BASE_URL", "http://127.0.0.1:8899/v1", "http://127.0.0.1:8899/v1", id="url"),
        pytest.param("SANDBOX", True, True, id="sandbox on"),
        pytest.param("SANDBOX", "moe.json", "moe.json", id="sandbox file"),
        pytest.param("SANDBOX", pathlib.Path("/srv/moe.json"), "/srv/moe.json", id="sandbox path"),
        pytest.param(
            "EXPERIENCES", {"*": ["a", "b", "a"], "s:*": ("c",)}, {"*": ("a", "b"), "s:*": ("c",)}, id="routes"
        ),
        pytest.param("IDENTIFY", "shop.who.identify", "shop.who.identify", id="dotted path"),
        pytest.param("IDENTIFY", "", "", id="empty dotted path"),
        pytest.param("ATTRIBUTES", ["a.b", "c.d"], ("a.b", "c.d"), id="dotted paths"),
        pytest.param("QUERY_PARAMETERS", ["gclid"], ("gclid",), id="query parameters"),
        pytest.param("QUERY_PARAMETERS", [], (), id="no query parameters"),
        pytest.param("TIME_ZONE", "Europe/Berlin", ZoneInfo("Europe/Berlin"), id="time zone by name"),
        pytest.param("TIME_ZONE", ZoneInfo("Asia/Tokyo"), ZoneInfo("Asia/Tokyo"), id="time zone"),
        pytest.param(
            "TRUSTED_PROXIES",
            ["10.0.0.0/8", "::1", ipaddress.ip_network("fd00::/8")],
            tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "::1/128", "fd00::/8"))),
            id="networks",
        ),
        pytest.param("IP_PRECISION", "truncated", "truncated", id="choice"),
        pytest.param("DEADLINE", 1, 1.0, id="whole seconds"),
        pytest.param("DEADLINE", 30, 30.0, id="longest deadline"),
        pytest.param("MAX_CONCURRENT_FETCHES", 1, 1, id="whole number"),
        pytest.param("CACHE", "pages", "pages", id="alias"),
        pytest.param("CACHE_TTL", 0, 0.0, id="nothing is fresh"),
        pytest.param("VARY_CACHE_ON", [], (), id="vary on nothing"),
        pytest.param("VARY_CACHE_ON", ("utm_source",), ("utm_source",), id="vary"),
        pytest.param("CACHE_CONTROL", "private", "private", id="header"),
        pytest.param("DELIVERY", {"BACKEND": "a.B", "OPTIONS": {"x": 1}}, Backend("a.B", {"x": 1}), id="backend"),
        pytest.param("DELIVERY", {"OPTIONS": {"x": 1}}, Backend(settings.DELIVERY, {"x": 1}), id="options alone"),
        pytest.param("CONTENT_HOSTS", ["CDN.example.com:8443"], ("cdn.example.com:8443",), id="hosts"),
    ],
)
def test_dict_value_is_read(name, value, expected):
    """A right value of the dict is what the package works with."""
    assert getattr(configure(**{name: value}), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        *[pytest.param("ENABLED", word, True, id=f"enabled {word}") for word in ("true", " ON ", "yes", "1")],
        *[pytest.param("ENABLED", word, False, id=f"enabled {word}") for word in ("False", "off", "no", "0")],
        pytest.param("DATA_CENTER", "03", "03", id="data centre"),
        pytest.param("SANDBOX", "true", True, id="sandbox on"),
        pytest.param("SANDBOX", "/srv/moe.json", "/srv/moe.json", id="sandbox file"),
        pytest.param("DEADLINE", "1e-1", 0.1, id="float"),
        pytest.param("MAX_CONCURRENT_FETCHES", "8", 8, id="int"),
        pytest.param("EXPERIENCES", '{"*": ["a"]}', {"*": ("a",)}, id="dict"),
        pytest.param("ATTRIBUTES", "a.b, c.d,", ("a.b", "c.d"), id="list"),
        pytest.param("QUERY_PARAMETERS", "[]", (), id="empty JSON list"),
        pytest.param("QUERY_PARAMETERS", '["gclid"]', ("gclid",), id="JSON list"),
        pytest.param("DELIVERY", '{"BACKEND": "a.B"}', Backend("a.B"), id="backend"),
        pytest.param("CACHE_TTL", "", 60.0, id="empty is unset"),
        pytest.param("DEADLINE", "$OTHER_DEADLINE", 0.7, id="variable of another name"),
    ],
)
def test_environment_value_is_read(monkeypatch, name, text, expected):
    """A variable gives what the dict would; an empty one gives nothing."""
    monkeypatch.setenv("OTHER_DEADLINE", "0.7")
    assert getattr(from_environment(monkeypatch, **{name: text}), name.lower()) == expected


def test_dict_wins_key_by_key(monkeypatch):
    """The environment fills in only what the dict does not give, or gives as None."""
    monkeypatch.setenv("MOE_PERSONALIZE_DEADLINE", "0.1")
    monkeypatch.setenv("MOE_PERSONALIZE_CACHE", "pages")
    monkeypatch.setenv("MOE_PERSONALIZE_API_KEY", SECRET)
    found = configure(DEADLINE=0.2, API_KEY=None)
    assert (found.deadline, found.cache, found.api_key) == (0.2, "pages", SECRET)


def test_environment_that_loses_is_not_read(monkeypatch):
    """A mistaken variable does no harm under a right value in the dict."""
    monkeypatch.setenv("MOE_PERSONALIZE_DEADLINE", "soon")
    assert configure(DEADLINE=0.2).deadline == 0.2


@pytest.mark.parametrize(
    ("debug", "given", "expected"),
    [
        pytest.param(True, {}, True, id="debug without credentials"),
        pytest.param(True, {"DATA_CENTER": "03"}, True, id="debug with a data centre alone"),
        pytest.param(True, {"WORKSPACE_ID": "W"}, False, id="debug with an id"),
        pytest.param(True, {"API_KEY": "K"}, False, id="debug with a key"),
        pytest.param(True, {"SANDBOX": False}, False, id="debug, off by choice"),
        pytest.param(False, {}, False, id="production without credentials"),
        pytest.param(False, {"SANDBOX": True}, True, id="production, on by choice"),
    ],
)
def test_sandbox_by_default(settings, debug, given, expected):
    """The sandbox is on where DEBUG is and no credential was given, unless the site says otherwise."""
    settings.DEBUG = debug
    assert configure(**given).sandbox is expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({"DATA_CENTER": "101"}, "https://sdk-101.moengage.com/v1", id="from the data centre"),
        pytest.param({"DATA_CENTER": "01", "BASE_URL": "https://x"}, "https://x", id="given"),
        pytest.param({"DATA_CENTER": "01", "SANDBOX": True}, "", id="sandbox keeps to itself"),
        pytest.param({"DATA_CENTER": "", "BASE_URL": ""}, "", id="nothing"),
    ],
)
def test_base_url(given, expected):
    """The URL follows from the data centre, unless one is given or the sandbox is in the process."""
    assert configure(**given).base_url == expected


def test_answers_stay_usable_as_long_as_they_are_fresh():
    """A CACHE_TTL above the default of CACHE_STALE_TTL takes that along."""
    assert configure(CACHE_TTL=3600).cache_stale_ttl == 3600.0


def test_answers_cannot_be_fresh_after_they_are_unusable():
    """A CACHE_STALE_TTL below CACHE_TTL is a mistake."""
    error = mistake(CACHE_STALE_TTL=59.5)
    assert "CACHE_STALE_TTL of MOE_PERSONALIZE is 59.5, less than CACHE_TTL, 60." in str(error)
    assert configure(CACHE_STALE_TTL=60).cache_stale_ttl == 60.0


def test_settings_are_remembered_until_they_change(settings):
    """The settings are made once; MOE_PERSONALIZE and DEBUG make them anew, another setting does not."""
    settings.MOE_PERSONALIZE = {"DEADLINE": 0.2}
    first = get_settings()
    settings.USE_TZ = False
    assert get_settings() is first
    settings.DEBUG = True
    assert get_settings().sandbox is True
    settings.MOE_PERSONALIZE = {"DEADLINE": 0.4}
    assert get_settings().deadline == 0.4


def test_settings_cannot_be_changed():
    """The settings, and the dicts within, are read only."""
    found = configure(EXPERIENCES={"*": ["a"]}, DELIVERY={"OPTIONS": {"x": 1}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.deadline = 1.0
    with pytest.raises(TypeError):
        found.experiences["b"] = ()
    with pytest.raises(TypeError):
        found.delivery.options["y"] = 2


def test_reserved_names_are_those_of_the_wire():
    """What a visitor's query may not fill is every field that the client writes itself."""
    assert readers.RESERVED_NAMES == SYSTEM_FIELDS


def test_import_reads_no_setting():
    """The module can be imported before Django is configured."""
    program = "from django.conf import settings; import django_moe_personalize.conf; assert not settings.configured"
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    assert subprocess.run([sys.executable, "-c", program], check=False, env=environment).returncode == 0
