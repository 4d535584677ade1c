"""Settings: their sources and their values."""

import dataclasses
import ipaddress
import os
import pathlib
import subprocess
import sys
from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from django_moe_personalize.conf import DELIVERY, Backend, get_settings, readers
from django_moe_personalize.conf import settings as conf_settings
from django_moe_personalize.conf.settings import is_test_run
from django_moe_personalize.moengage.client import SYSTEM_FIELDS
from tests.conf.configured import CREDENTIALS, SECRET, configure, configure_environment


def test_defaults_are_documented(settings):
    """A site without MOE_PERSONALIZE gets the documented defaults."""
    del settings.MOE_PERSONALIZE
    found = get_settings()
    assert {field.name: getattr(found, field.name) for field in dataclasses.fields(found)} == {
        "name": "default",
        "suffix": "",
        "workspaces": {},
        "workspace": "",
        "enabled": True,
        "workspace_id": "",
        "api_key": "",
        "data_api_key": "",
        "data_center": "",
        "base_url": "",
        "sandbox": False,
        "experiences": {},
        "learn_routes": True,
        "identify": "",
        "anonymous_id": True,
        "anonymous_events": "always",
        "attributes": (),
        "query_parameters": ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content"),
        "time_zone": UTC,
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
        "islands": "script",
        "delivery": Backend("django_moe_personalize.delivery.thread.ThreadDelivery", {}),
        "cache_control": "private, no-store",
        "transport": Backend("django_moe_personalize.moengage.transport.RequestsTransport", {}),
        "content_hosts": (),
        "offering_events": False,
    }


NETWORKS = ["10.0.0.0/8", "::1", ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ENABLED", False, False),
        ("WORKSPACE_ID", " ABC_DEBUG\n", "ABC_DEBUG"),
        ("API_KEY", "a:b", "a:b"),
        ("DATA_CENTER", "101", "101"),
        ("BASE_URL", "http://127.0.0.1:8899/v1", "http://127.0.0.1:8899/v1"),
        ("SANDBOX", True, True),
        ("SANDBOX", "moe.json", "moe.json"),
        ("SANDBOX", pathlib.Path("/srv/moe.json"), "/srv/moe.json"),
        ("EXPERIENCES", {"*": ["a", "b", "a"], "s:*": ("c",)}, {"*": ("a", "b"), "s:*": ("c",)}),
        ("LEARN_ROUTES", False, False),
        ("LEARN_ROUTES", "shop.cms.get_kind", "shop.cms.get_kind"),
        ("IDENTIFY", "shop.who.identify", "shop.who.identify"),
        ("IDENTIFY", "", ""),
        ("ATTRIBUTES", ["a.b", "c.d"], ("a.b", "c.d")),
        ("QUERY_PARAMETERS", ["gclid"], ("gclid",)),
        ("QUERY_PARAMETERS", [], ()),
        ("TIME_ZONE", "Europe/Berlin", ZoneInfo("Europe/Berlin")),
        ("TIME_ZONE", ZoneInfo("UTC"), UTC),
        ("TIME_ZONE", ZoneInfo("Asia/Tokyo"), ZoneInfo("Asia/Tokyo")),
        ("TRUSTED_PROXIES", NETWORKS, tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "::1/128", "fd00::/8")))),
        ("TRUSTED_PROXIES", ["unix"], ("unix",)),
        ("TRUSTED_PROXIES", ["::ffff:10.0.0.0/104", "::/0"], tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "::/0")))),
        ("IP_PRECISION", "truncated", "truncated"),
        ("DEADLINE", 1, 1.0),
        ("DEADLINE", 30, 30.0),
        ("MAX_CONCURRENT_FETCHES", 1, 1),
        ("CACHE", "pages", "pages"),
        ("CACHE_TTL", 0, 0.0),
        ("VARY_CACHE_ON", [], ()),
        ("VARY_CACHE_ON", ("utm_source",), ("utm_source",)),
        ("CACHE_CONTROL", "private", "private"),
        ("DELIVERY", {"BACKEND": "a.B", "OPTIONS": {"x": 1}}, Backend("a.B", {"x": 1})),
        ("DELIVERY", {"OPTIONS": {"x": 1}}, Backend(DELIVERY, {"x": 1})),
        ("CONTENT_HOSTS", ["CDN.example.com:8443"], ("cdn.example.com:8443",)),
        ("CONTENT_HOSTS", ["Bücher.example.:443"], ("xn--bcher-kva.example:443",)),
    ],
)
def test_value_in_the_dict(name, value, expected):
    """Each kind of value in the dict becomes a typed attribute."""
    assert getattr(configure(**{name: value}), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        *[("ENABLED", word, True) for word in ("true", " ON ", "yes", "y", "ok", "1")],
        *[("ENABLED", word, False) for word in ("False", "off", "no", "n", "0")],
        ("DATA_CENTER", "03", "03"),
        ("SANDBOX", "true", True),
        ("SANDBOX", "/srv/moe.json", "/srv/moe.json"),
        ("DEADLINE", "0.1", 0.1),
        ("DEADLINE", ".5 ", 0.5),
        ("CACHE_TTL", "90", 90.0),
        ("MAX_CONCURRENT_FETCHES", "8", 8),
        ("EXPERIENCES", '{"*": ["a"]}', {"*": ("a",)}),
        ("LEARN_ROUTES", "off", False),
        ("LEARN_ROUTES", "shop.cms.get_kind", "shop.cms.get_kind"),
        ("ATTRIBUTES", "a.b, c.d,", ("a.b", "c.d")),
        ("QUERY_PARAMETERS", "[]", ()),
        ("QUERY_PARAMETERS", '["gclid"]', ("gclid",)),
        ("DELIVERY", '{"BACKEND": "a.B"}', Backend("a.B")),
        ("CACHE_TTL", "", 60.0),
        ("DEADLINE", "$OTHER_DEADLINE", 0.7),
        ("QUERY_PARAMETERS", "$OTHER_NAMES", ("a", "b")),
    ],
)
def test_value_in_the_environment(monkeypatch, name, text, expected):
    """A variable has the same effect as the dict. An empty variable has none, and $NAME reads another variable."""
    monkeypatch.setenv("OTHER_DEADLINE", "0.7")
    monkeypatch.setenv("OTHER_NAMES", "a,b")
    assert getattr(configure_environment(monkeypatch, **{name: text}), name.lower()) == expected


def test_dict_wins_over_the_environment(monkeypatch):
    """The environment is read for each key that the dict doesn't have or has as None."""
    monkeypatch.setenv("MOE_PERSONALIZE_DEADLINE", "soon")
    monkeypatch.setenv("MOE_PERSONALIZE_CACHE", "pages")
    monkeypatch.setenv("MOE_PERSONALIZE_API_KEY", SECRET)
    found = configure(DEADLINE=0.2, API_KEY=None)
    assert (found.deadline, found.cache, found.api_key) == (0.2, "pages", SECRET)


def test_sandbox_in_a_test_run(monkeypatch):
    """In a test run, as now, the sandbox is on even with credentials, unless SANDBOX is off."""
    monkeypatch.setattr(conf_settings, "is_test_run", is_test_run)
    assert configure(**CREDENTIALS).sandbox is True
    assert configure(**CREDENTIALS, SANDBOX=False).sandbox is False


@pytest.mark.parametrize(
    ("debug", "given", "expected"),
    [
        (True, {}, True),
        (True, {"DATA_CENTER": "03"}, True),
        (True, {"WORKSPACE_ID": "W"}, False),
        (True, {"API_KEY": "K"}, False),
        (True, {"SANDBOX": False}, False),
        (False, {}, False),
        (False, {"SANDBOX": True}, True),
    ],
)
def test_sandbox_by_default(settings, debug, given, expected):
    """Without SANDBOX, the sandbox is on with DEBUG and no credentials."""
    settings.DEBUG = debug
    assert configure(**given).sandbox is expected


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("base_url", {"DATA_CENTER": "101"}, "https://sdk-101.moengage.com/v1"),
        ("base_url", {"DATA_CENTER": "01", "BASE_URL": "https://x"}, "https://x"),
        ("base_url", {"DATA_CENTER": "01", "SANDBOX": True}, ""),
        ("base_url", {"DATA_CENTER": "", "BASE_URL": ""}, ""),
        ("cache_stale_ttl", {"CACHE_TTL": 3600}, 3600.0),
        ("cache_stale_ttl", {"CACHE_STALE_TTL": 60}, 60.0),
    ],
)
def test_default_that_follows_from_another_setting(name, given, expected):
    """The data center gives the URL, unless the sandbox is on. A long CACHE_TTL raises CACHE_STALE_TTL."""
    assert getattr(configure(**given), name) == expected


def test_settings_are_kept_until_they_change(settings):
    """A change of MOE_PERSONALIZE or DEBUG builds the settings again, a change of another setting doesn't."""
    settings.MOE_PERSONALIZE = {"DEADLINE": 0.2}
    first = get_settings()
    settings.USE_TZ = False
    assert get_settings() is first
    settings.DEBUG = True
    assert get_settings().sandbox is True
    settings.MOE_PERSONALIZE = {"DEADLINE": 0.4}
    assert get_settings().deadline == 0.4


def test_settings_are_read_only():
    """Neither the settings nor the dicts in them can be changed."""
    found = configure(EXPERIENCES={"*": ["a"]}, DELIVERY={"OPTIONS": {"x": 1}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.deadline = 1.0
    with pytest.raises(TypeError):
        found.experiences["b"] = ()
    with pytest.raises(TypeError):
        found.delivery.options["y"] = 2


def test_reserved_names_are_fields_of_the_api():
    """A query parameter can't have the name of a field that the client writes."""
    assert readers.RESERVED_NAMES == SYSTEM_FIELDS


def test_import_reads_no_setting():
    """The package can be imported before Django is configured, and doesn't load django-environ."""
    program = (
        "import sys; from django.conf import settings; import django_moe_personalize.conf; "
        "assert not settings.configured; assert 'environ' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    assert subprocess.run([sys.executable, "-c", program], check=False, env=environment).returncode == 0
