"""What ``manage.py check`` says of a site, and that it says nothing of a right one."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.core.checks import Error, run_checks
from django.core.checks.registry import registry
from django.http import HttpResponse
from django.test import override_settings
from django.urls import include, path

from django_moe_personalize.checks import settings
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.middleware import PersonalizeMiddleware
from tests.configured import _clean_environment  # noqa: F401 - a fixture

SECRET = "key-nobody-may-read"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
OURS = "django_moe_personalize.middleware.PersonalizeMiddleware"
THEIRS = "tests.test_checks.TheirMiddleware"
SHARED_CACHE = {"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "/nowhere"}}
SITE = {
    "DEBUG": False,
    "MOE_PERSONALIZE": {"WORKSPACE_ID": "SITE", "API_KEY": SECRET, "DATA_CENTER": "03"},
    "MIDDLEWARE": [SESSIONS, AUTHENTICATION, OURS],
    "CACHES": SHARED_CACHE,
    "ROOT_URLCONF": "tests.test_checks",
}
not_callable = "a string"


class TheirMiddleware(PersonalizeMiddleware):
    """A site's own subclass."""


def page(request):
    """Answer with nothing."""
    return HttpResponse()


class ShopURLs:
    """The URLs of a shop with an admin below."""

    app_name = "shop"
    urlpatterns = [
        path("", page, name="home"),
        path("back/", include(([path("", page, name="index")], "office"), namespace="back")),
    ]


urlpatterns = [
    path("", page),
    path("plain/", page, name="plain"),
    path("shop/", include(ShopURLs)),
    path("more/", include([path("page/", page, name="page")])),
    path("moe/", include("django_moe_personalize.urls")),
]


class WithoutOurURLs:
    """A URLconf where nobody takes a click."""

    urlpatterns = [path("plain/", page, name="plain")]


def check_site(moe=None, **changes):
    """Return the messages for a right site with these changes, ``moe`` being those in MOE_PERSONALIZE."""
    given = {**SITE["MOE_PERSONALIZE"], **(moe or {})}
    with override_settings(**{**SITE, "MOE_PERSONALIZE": given, **changes}):
        return run_checks(tags=["moe_personalize"])


def numbers(messages):
    """Return the ids without their prefix."""
    return [message.id.removeprefix("moe_personalize.") for message in messages]


@pytest.mark.parametrize(
    ("moe", "changes"),
    [
        pytest.param({}, {}, id="production"),
        pytest.param({"ENABLED": False}, {}, id="off"),
        pytest.param({}, {"MOE_PERSONALIZE": {"ENABLED": False}}, id="off without credentials"),
        pytest.param({}, {"DEBUG": True, "MOE_PERSONALIZE": {}}, id="first five minutes"),
        pytest.param(
            {},
            {"DEBUG": True, "MOE_PERSONALIZE": {"BASE_URL": "http://127.0.0.1:8899/v1"}},
            id="sandbox behind a url",
        ),
        pytest.param(
            {},
            {"DEBUG": True, "CACHES": {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}},
            id="local cache in DEBUG",
        ),
        pytest.param({}, {"MIDDLEWARE": [SESSIONS, AUTHENTICATION, THEIRS]}, id="a subclass of the middleware"),
        pytest.param({}, {"MIDDLEWARE": [OURS]}, id="neither sessions nor authentication"),
        pytest.param({}, {"MIDDLEWARE": [SESSIONS, OURS, "no.such.Middleware"]}, id="middleware that is not there"),
        pytest.param({}, {"MIDDLEWARE": [OURS, "tests.test_checks.page"]}, id="middleware that is a function"),
        pytest.param({}, {"ROOT_URLCONF": "no.such.urls"}, id="broken urls"),
        pytest.param({}, {"CACHES": {"default": {"BACKEND": "no.such.Cache"}}}, id="broken cache"),
        pytest.param(
            {
                "EXPERIENCES": {
                    "*": ["a"],
                    "plain": ["a"],
                    "tests.test_checks.page": ["a"],
                    "shop:home": ["a"],
                    "shop:*": ["a"],
                    "shop:back:*": ["a"],
                    "shop:back:index": ["a"],
                    "page": ["a"],
                    "moe_personalize:*": ["a"],
                }
            },
            {},
            id="routes",
        ),
        pytest.param(
            {},
            {"DEBUG": True, "MOE_PERSONALIZE": {"EXPERIENCES": {"*": ["hero-banner"]}}},
            id="key of the sandbox",
        ),
        pytest.param(
            {
                "IDENTIFY": "tests.test_checks.page",
                "CONSENT": "tests.test_checks.page",
                "ATTRIBUTES": ["tests.test_checks.page"],
                "TRUSTED_PROXIES": ["10.0.0.0/8"],
                "CACHE_CONTROL": "Private, max-age=0",
            },
            {},
            id="everything",
        ),
    ],
)
def test_right_site_hears_nothing(moe, changes):
    """A site without a mistake gets no message."""
    assert check_site(moe, **changes) == []


@pytest.mark.parametrize(
    ("moe", "number", "text", "hint"),
    [
        pytest.param({"DEADLNE": 1}, "E001", "'DEADLNE'", 'Did you mean "DEADLINE"?', id="unknown setting"),
        pytest.param({"DEADLINE": -1}, "E002", "above 0", "leave it out for the default", id="value"),
        pytest.param({"DEADLINE": "1"}, "E002", "a number", "without quotation marks", id="value with its mend"),
        pytest.param({"WORKSPACE_ID": ""}, "E003", "no WORKSPACE_ID, though API_KEY is there", "dashboard", id="no id"),
        pytest.param(
            {"API_KEY": ""}, "E004", "no API_KEY, though WORKSPACE_ID is there", "Personalize key", id="no key"
        ),
        pytest.param({"DATA_CENTER": ""}, "E005", "no DATA_CENTER.", "address of your dashboard", id="no data centre"),
        pytest.param({"DATA_CENTER": 3}, "E005", "is 3; expected one of", 'Write "03".', id="data centre"),
        pytest.param({"BASE_URL": "http://example.com"}, "E006", "https", "Leave it out", id="unsafe url"),
        pytest.param({"IDENTIFY": "no.such.identify"}, "E009", "IDENTIFY", "Correct the path", id="identify"),
        pytest.param({"CONSENT": "tests.test_checks.not_callable"}, "E009", "not callable", "Name a", id="consent"),
        pytest.param({"ATTRIBUTES": ["tests.test_checks.no"]}, "E009", "ATTRIBUTES", "Correct", id="attributes"),
        pytest.param({"DELIVERY": {"BACKEND": "no.such.Delivery"}}, "E010", "DELIVERY", "Correct", id="delivery"),
        pytest.param({"TRANSPORT": {"BACKEND": "no.such.Transport"}}, "E011", "TRANSPORT", "Correct", id="transport"),
        pytest.param({"TRANSPORT": {"OPTIONS": {"verfy": 1}}}, "E011", "'verfy'", "verify", id="option"),
        pytest.param({"TRANSPORT": {"OPTIONS": {"verify": "/no"}}}, "E011", "verify must", "OPTIONS", id="CA file"),
        pytest.param({"CACHE": "defualt"}, "E012", "'defualt'", 'Did you mean "default"?', id="mistyped cache"),
        pytest.param({"CACHE": "zzz"}, "E012", "'zzz'", "CACHES has 'default'.", id="no cache"),
        pytest.param({"CACHE_CONTROL": "max-age=60"}, "W009", "shared cache", "private, no-store", id="shared page"),
        pytest.param({"TRUSTED_PROXIES": ["::/0"]}, "W010", "trusts everybody", "your own", id="every proxy"),
        pytest.param({"EXPERIENCES": {"shop:hme": ["a"]}}, "W007", "'shop:hme'", '"shop:home"?', id="mistyped route"),
        pytest.param({"EXPERIENCES": {"shop": ["a"]}}, "W007", "'shop'", '"shop:*"?', id="namespace without its star"),
        pytest.param({"EXPERIENCES": {"q": ["a"]}}, "W007", "'q'", "A route is a view name", id="no route"),
    ],
)
def test_mistake_of_the_settings_is_told(moe, number, text, hint):
    """One mistake gives one message with what is wrong and a hint that names the mend."""
    [message] = check_site(moe)
    assert numbers([message]) == [number]
    assert text in message.msg
    assert hint in message.hint
    assert isinstance(message, Error) == number.startswith("E")
    assert SECRET not in str(message)


def test_missing_credentials_are_told_one_by_one():
    """A site that gives nothing outside DEBUG hears of all three, and of neither half as alone."""
    messages = check_site(MOE_PERSONALIZE={})
    assert numbers(messages) == ["E003", "E004", "E005"]
    assert not any("though" in message.msg for message in messages)


def test_url_replaces_the_data_center():
    """With a BASE_URL of its own a site needs no DATA_CENTER."""
    assert check_site({"DATA_CENTER": "", "BASE_URL": "https://proxy.example.com/v1"}) == []


def test_transport_is_checked_under_the_sandbox():
    """A mistyped TRANSPORT is told while the site still works on the sandbox."""
    moe = {"TRANSPORT": {"BACKEND": "no.such.Transport"}}
    assert numbers(check_site(DEBUG=True, MOE_PERSONALIZE=moe)) == ["E011"]


def test_unknown_variable_is_told(monkeypatch):
    """A mistyped environment variable is a warning that names the nearest setting."""
    monkeypatch.setenv("MOE_PERSONALIZE_DEADLNE", "1")
    [message] = check_site()
    assert (message.id, message.hint) == ("moe_personalize.W002", "Did you mean MOE_PERSONALIZE_DEADLINE?")


@pytest.mark.parametrize(
    ("middleware", "expected"),
    [
        pytest.param([SESSIONS, AUTHENTICATION], ["W001"], id="missing"),
        pytest.param([SESSIONS, AUTHENTICATION, OURS, OURS], ["E007"], id="twice"),
        pytest.param([SESSIONS, AUTHENTICATION, OURS, THEIRS], ["E007"], id="twice, as a subclass"),
        pytest.param([SESSIONS, OURS, AUTHENTICATION], ["E008"], id="before authentication"),
        pytest.param([OURS, SESSIONS, AUTHENTICATION], ["E008", "E008"], id="before sessions and authentication"),
        pytest.param([THEIRS, SESSIONS], ["E008"], id="subclass before sessions"),
    ],
)
def test_middleware_out_of_place_is_told(middleware, expected):
    """The middleware is there once, after sessions and authentication where these are installed."""
    messages = check_site(MIDDLEWARE=middleware)
    assert numbers(messages) == expected
    assert all(OURS in message.hint or message.hint == "Keep the last." for message in messages)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"MIDDLEWARE": []}, [], id="no middleware"),
        pytest.param({"ROOT_URLCONF": WithoutOurURLs}, [], id="no urls"),
        pytest.param({"CACHES": {"default": {"BACKEND": settings.DUMMY_CACHE}}}, [], id="no cache"),
        pytest.param({"DEBUG": False}, [], id="no sandbox"),
    ],
)
def test_site_that_is_off_is_left_alone(changes, expected):
    """With ENABLED False what only a personalized page needs may be missing."""
    moe = {"ENABLED": False, "SANDBOX": True}
    assert numbers(check_site(MOE_PERSONALIZE=moe, **changes)) == expected


@pytest.mark.parametrize(
    ("backend", "debug", "moe", "expected"),
    [
        pytest.param(settings.LOCAL_CACHE, False, {}, ["W004"], id="local"),
        pytest.param(settings.LOCAL_CACHE, True, {}, [], id="local in DEBUG"),
        pytest.param(settings.LOCAL_CACHE, False, {"SANDBOX": True}, ["W006"], id="local with the sandbox"),
        pytest.param(settings.DUMMY_CACHE, False, {}, ["W005"], id="dummy"),
        pytest.param(settings.DUMMY_CACHE, True, {}, ["W005"], id="dummy in DEBUG"),
    ],
)
def test_cache_that_keeps_too_little_is_told(backend, debug, moe, expected):
    """A cache of one process, or of nothing, means more calls than the site thinks."""
    messages = check_site(moe, DEBUG=debug, CACHES={"default": {"BACKEND": backend}})
    assert numbers(messages) == expected
    assert all("Redis or Memcached" in message.hint for message in messages if message.id != "moe_personalize.W006")


def test_sandbox_in_production_is_told():
    """Outside DEBUG the sandbox is a warning: visitors see made-up content."""
    [message] = check_site(MOE_PERSONALIZE={"SANDBOX": True})
    assert (message.id, '["SANDBOX"] = False' in message.hint) == ("moe_personalize.W006", True)


@pytest.mark.parametrize(
    "moe",
    [
        pytest.param({}, id="embedded"),
        pytest.param({"BASE_URL": "http://127.0.0.1:8899/v1"}, id="for its credentials"),
    ],
)
def test_broken_workspace_is_told(tmp_path, moe):
    """A mistake in the workspace file is an error with its place."""
    file = tmp_path / "moe.json"
    file.write_text("{")
    [message] = check_site(DEBUG=True, MOE_PERSONALIZE={"SANDBOX": file, **moe})
    assert message.id == "moe_personalize.E013"
    assert "moe.json: line 1" in message.msg


def test_workspace_that_nobody_needs_is_not_read():
    """A sandbox behind a URL with the site's own credentials has its workspace elsewhere."""
    moe = {"SANDBOX": "/no/such.json", "BASE_URL": "http://127.0.0.1:8899/v1"}
    assert check_site(moe, DEBUG=True) == []


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        pytest.param("hero-baner", 'Did you mean "hero-banner"?', id="near"),
        pytest.param("qqq", "It has hero-banner, ", id="like nothing"),
    ],
)
def test_key_the_sandbox_lacks_is_told(key, hint):
    """A configured key that the sandbox does not have is a warning, once however many routes ask for it."""
    moe = {"EXPERIENCES": {"*": [key], "plain": [key]}}
    [message] = check_site(DEBUG=True, MOE_PERSONALIZE=moe)
    assert message.id == "moe_personalize.W008"
    assert message.hint.startswith(hint)


def test_empty_sandbox_says_so(tmp_path):
    """The hint of a workspace without experiences names none."""
    file = tmp_path / "moe.json"
    file.write_text('{"workspace_id": "W", "api_key": "k", "experiences": []}')
    [message] = check_site(DEBUG=True, MOE_PERSONALIZE={"SANDBOX": file, "EXPERIENCES": {"*": ["a"]}})
    assert message.hint == "It has none."


@pytest.mark.parametrize(
    ("moe", "text"),
    [
        pytest.param({}, "take clicks are", id="render"),
        pytest.param({"IMPRESSIONS": "visible"}, "take clicks and impressions are", id="visible"),
    ],
)
def test_urls_that_are_not_included_are_told(moe, text):
    """Without the package's URLs nobody takes the clicks."""
    [message] = check_site(moe, ROOT_URLCONF=WithoutOurURLs)
    assert message.id == "moe_personalize.W003"
    assert text in message.msg
    assert 'include("django_moe_personalize.urls")' in message.hint


def test_urls_are_not_needed_without_pages():
    """A site that only uses the API hears of the middleware, not of the URLs."""
    assert numbers(check_site(ROOT_URLCONF=WithoutOurURLs, MIDDLEWARE=[])) == ["W001"]


def test_other_checks_wait_for_values():
    """While a value is wrong, the checks that need the settings are silent."""
    messages = check_site({"DEADLINE": "soon", "CACHE": "zzz"}, MIDDLEWARE=[])
    assert numbers(messages) == ["E002"]


def test_checks_are_registered_by_the_app():
    """The app registers one check under its label, however often it is made ready, which runs them all."""
    apps.get_app_config("moe_personalize").ready()
    (registered,) = [check for check in registry.get_checks() if "moe_personalize" in check.tags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "CHECKS", [lambda number=number, **kwargs: [number] for number in range(3)])
        assert registered(app_configs=None) == [0, 1, 2]
    assert all(check.__doc__ and check.__name__.startswith("check_") for check in settings.CHECKS)


def test_checks_ask_neither_database_nor_network(monkeypatch):
    """A check opens no connection; pytest-django's block of the database is in force."""

    def refuse(*args, **kwargs):
        raise AssertionError("a check opened a socket")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert check_site() == []


def test_check_command_fails_with_the_hint():
    """``manage.py check`` in a process of its own ends with an error that names the mend."""
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "MOE_PERSONALIZE_DATA_CENTER": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "django", "check"], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "moe_personalize.E005" in done.stderr
    assert 'HINT: Write "03".' in done.stderr


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, True),
        ({"enable-threads": b"false"}, True),
        ({"enable-threads": True}, False),
        ({"enable-threads": b"true"}, False),
        ({"threads": b"4"}, False),
    ],
)
def test_uwsgi_without_threads_is_told(monkeypatch, caplog, options, warned):
    """Inside uWSGI, whose module says how it was started, the check and the log name the option that is missing."""
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))
    found = check_site({})
    assert [message.id for message in found] == ["moe_personalize.W011"] * warned
    assert all("enable-threads" in message.hint for message in found)
    assert check_site({"DELIVERY": {"BACKEND": "django_moe_personalize.delivery.dummy.DummyDelivery"}}) == []
    ThreadDelivery().close()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
