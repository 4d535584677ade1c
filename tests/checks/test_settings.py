"""``manage.py check``: one message for each mistake, with its fix, and none for a right site."""

import sys
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.conf.urls.i18n import i18n_patterns
from django.contrib.auth.models import Permission, User
from django.core.checks import Error, run_checks
from django.core.checks.registry import registry
from django.db import models
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path

from django_moe_personalize import rendering, views
from django_moe_personalize.checks import settings as checks
from django_moe_personalize.checks.settings import DUMMY_CACHE, LOCAL_CACHE
from django_moe_personalize.checks.settings import MIDDLEWARE as OURS
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.middleware import PersonalizeMiddleware
from tests.conf.configured import CREDENTIALS, SECRET

SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
THEIRS = f"{__name__}.TheirMiddleware"
PAGE = f"{__name__}.page"
FLATPAGES = "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware"
SITE = {
    "DEBUG": False,
    "MIDDLEWARE": [SESSIONS, AUTHENTICATION, OURS],
    "CACHES": {"default": {"BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache", "LOCATION": "nowhere"}},
    "ROOT_URLCONF": __name__,
}
SANDBOX_URL = {"BASE_URL": "http://127.0.0.1:8899/v1", "IDENTIFY": "tests.site.plain"}
FILES = {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "/nowhere"}


class TheirMiddleware(PersonalizeMiddleware):
    """A site's own subclass."""


class TheirFlatpages(type("FlatpageFallbackMiddleware", (), {"__module__": FLATPAGES.rpartition(".")[0]})):
    """A site's own subclass of Django's class, which can't be imported without its app."""


def page(request):
    return HttpResponse()


class ShopURLs:
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
    urlpatterns = [path("plain/", page, name="plain")]


def check_site(moe=None, **changes):
    """Return the messages for a right site with these changes. ``moe`` changes keys of MOE_PERSONALIZE."""
    with override_settings(**{**SITE, "MOE_PERSONALIZE": {**CREDENTIALS, "IDENTIFY": PAGE, **(moe or {})}, **changes}):
        return run_checks(tags=["moe_personalize"])


ROUTES = ["*", "plain", PAGE, "shop:home", "shop:*", "shop:back:*", "shop:back:index", "page", "moe_personalize:*"]


@pytest.mark.parametrize(
    ("moe", "changes"),
    [
        ({}, {}),
        ({"ENABLED": False}, {}),
        ({}, {"MOE_PERSONALIZE": {"ENABLED": False}}),
        ({}, {"DEBUG": True, "MOE_PERSONALIZE": {}}),
        ({}, {"DEBUG": True, "MOE_PERSONALIZE": SANDBOX_URL}),
        ({}, {"DEBUG": True, "CACHES": {"default": {"BACKEND": LOCAL_CACHE}}}),
        ({}, {"MIDDLEWARE": [SESSIONS, AUTHENTICATION, THEIRS]}),
        ({}, {"MIDDLEWARE": [OURS, FLATPAGES]}),
        ({}, {"MIDDLEWARE": [SESSIONS, OURS, "no.such.Middleware"]}),
        ({}, {"MIDDLEWARE": [OURS, PAGE]}),
        ({}, {"ROOT_URLCONF": "no.such.urls"}),
        ({}, {"CACHES": {"default": {"BACKEND": "no.such.Cache"}}}),
        ({"CACHE": "own"}, {"CACHES": {"default": {"BACKEND": LOCAL_CACHE}, "own": FILES}}),
        ({}, {"DEBUG": True, "CACHES": {"default": FILES}}),
        ({"EXPERIENCES": {route: ["abcde", "x" * 50] for route in ROUTES}}, {}),
        ({}, {"DEBUG": True, "MOE_PERSONALIZE": {"EXPERIENCES": {"*": ["hero-banner"]}}}),
        ({"IDENTIFY": PAGE, "CONSENT": PAGE, "ATTRIBUTES": [PAGE], "TRUSTED_PROXIES": ["10.0.0.0/8", "unix"]}, {}),
        ({"CACHE_CONTROL": "Private, max-age=0"}, {}),
        ({"DATA_CENTER": "", "BASE_URL": "https://proxy.example.com/v1"}, {}),
        # The sandbox behind a URL has its workspace file elsewhere.
        ({"SANDBOX": "/no/such.json", **SANDBOX_URL}, {"DEBUG": True}),
    ],
)
def test_right_site(monkeypatch, moe, changes):
    """A site without a mistake gets no message. No check uses the network; pytest-django forbids the database."""
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("a check opened a socket"))
    assert check_site(moe, **changes) == []


@pytest.mark.parametrize(
    ("moe", "number", "text", "hint"),
    [
        ({"DEADLNE": 1}, "E001", "'DEADLNE'", 'Did you mean "DEADLINE"?'),
        ({"DEADLINE": -1}, "E002", "above 0", "remove it to use the default"),
        ({"WORKSPACE_ID": ""}, "E003", "has API_KEY, but no WORKSPACE_ID.", "dashboard"),
        ({"API_KEY": ""}, "E004", "has WORKSPACE_ID, but no API_KEY.", "Personalize key"),
        ({"DATA_CENTER": ""}, "E005", "has no DATA_CENTER.", "address of your dashboard"),
        ({"DATA_CENTER": "'03' "}, "E005", "expected one of", 'Write "03".'),
        ({"BASE_URL": "http://example.com"}, "E006", "https", "Remove it"),
        ({"IDENTIFY": "no.such.identify"}, "E009", "IDENTIFY", "Correct the path"),
        ({"CONSENT": f"{__name__}.PAGE"}, "E009", "isn't callable", "Name a"),
        ({"LEARN_ROUTES": "no.such.kind"}, "E009", "LEARN_ROUTES", "Correct the path"),
        ({"ATTRIBUTES": [f"{__name__}.no"]}, "E009", "ATTRIBUTES", "Correct"),
        ({"DELIVERY": {"BACKEND": "no.such.Delivery"}}, "E010", "DELIVERY", "Correct"),
        ({"TRANSPORT": {"BACKEND": "no.such.Transport"}}, "E011", "TRANSPORT", "Correct"),
        ({"TRANSPORT": {"OPTIONS": {"verfy": 1}}}, "E011", "'verfy'", "verify"),
        ({"TRANSPORT": {"OPTIONS": {"verify": "/no"}}}, "E011", "verify must", "OPTIONS"),
        ({"TRANSPORT": {"OPTIONS": {"cert": "/no"}}}, "E011", "cert must", "OPTIONS"),
        ({"CACHE": "defualt"}, "E012", "'defualt'", 'Did you mean "default"?'),
        ({"CACHE": "zzz"}, "E012", "'zzz'", "Use one of 'default'."),
        ({"CACHE_CONTROL": "max-age=60"}, "W009", "shared cache", "private, no-store"),
        ({"TRUSTED_PROXIES": ["::/0"]}, "W010", "every address", "your own"),
        ({"EXPERIENCES": {"shop:hme": ["promo"]}}, "W007", "'shop:hme'", '"shop:home"?'),
        ({"EXPERIENCES": {"shop": ["promo"]}}, "W007", "'shop'", '"shop:*"?'),
        ({"EXPERIENCES": {"q": ["promo"]}}, "W007", "'q'", "Use a view name"),
        # While a value is wrong, the other checks are silent.
        ({"DEADLINE": "soon", "CACHE": "zzz"}, "E002", "a number", "remove it"),
    ],
)
def test_mistake_in_the_settings(moe, number, text, hint):
    """One mistake gives one message, which says what is wrong and how to fix it."""
    [message] = check_site(moe)
    assert message.id == f"moe_personalize.{number}"
    assert text in message.msg
    assert hint in message.hint
    assert isinstance(message, Error) == number.startswith("E")
    assert SECRET not in str(message)


@pytest.mark.parametrize(
    ("expected", "moe", "changes"),
    [
        # Without any credential, no message mentions the other half.
        (["E003", "E004", "E005"], {}, {"MOE_PERSONALIZE": {"IDENTIFY": PAGE}}),
        (["E011"], {}, {"DEBUG": True, "MOE_PERSONALIZE": {"TRANSPORT": {"BACKEND": "no.such.Transport"}}}),
        (["W001"], {}, {"MIDDLEWARE": [SESSIONS, AUTHENTICATION]}),
        (["E007"], {}, {"MIDDLEWARE": [SESSIONS, AUTHENTICATION, OURS, OURS]}),
        (["E007"], {}, {"MIDDLEWARE": [SESSIONS, AUTHENTICATION, OURS, THEIRS]}),
        (["E008"], {}, {"MIDDLEWARE": [SESSIONS, OURS, AUTHENTICATION]}),
        (["E008", "E008"], {}, {"MIDDLEWARE": [OURS, SESSIONS, AUTHENTICATION]}),
        (["E008"], {}, {"MIDDLEWARE": [THEIRS, SESSIONS]}),
        (["W019"], {}, {"MIDDLEWARE": [SESSIONS, AUTHENTICATION, FLATPAGES, PAGE, OURS]}),
        (["W019"], {}, {"MIDDLEWARE": [SESSIONS, AUTHENTICATION, f"{__name__}.TheirFlatpages", OURS]}),
        (["W004"], {}, {"CACHES": {"default": {"BACKEND": LOCAL_CACHE}}}),
        (["W004"], {}, {"CACHES": {"default": FILES}}),
        (["W005"], {}, {"CACHES": {"default": {"BACKEND": DUMMY_CACHE}}}),
        (["W005"], {}, {"CACHES": {"default": {"BACKEND": DUMMY_CACHE}}, "DEBUG": True}),
        # The sandbox costs no calls, so the local cache doesn't matter.
        (["W006"], {"SANDBOX": True}, {"CACHES": {"default": {"BACKEND": LOCAL_CACHE}}}),
        (["W006"], {}, {"MOE_PERSONALIZE": {"SANDBOX": True}}),
        (["W003"], {}, {"ROOT_URLCONF": WithoutOurURLs}),
        # A site that uses the API alone needs no URLs.
        (["W001"], {}, {"ROOT_URLCONF": WithoutOurURLs, "MIDDLEWARE": []}),
        # A site that is off needs nothing of this.
        ([], {"ENABLED": False, "SANDBOX": True}, {"MIDDLEWARE": [], "ROOT_URLCONF": WithoutOurURLs}),
        ([], {"ENABLED": False}, {"MOE_PERSONALIZE": {"ENABLED": False, "SANDBOX": True}}),
        ([], {"ENABLED": False}, {"CACHES": {"default": {"BACKEND": DUMMY_CACHE}}}),
    ],
)
def test_mistake_in_the_site(expected, moe, changes):
    """Each mistake outside MOE_PERSONALIZE gives one message with a hint."""
    messages = check_site(moe, **changes)
    assert [message.id[-4:] for message in messages] == expected
    assert all(message.hint for message in messages)
    assert not any(", but no " in message.msg for message in messages)


@pytest.mark.parametrize(
    ("key", "moe", "changes", "numbers"),
    [
        (User._meta.pk, {}, {}, ["W014"]),
        (Permission._meta.get_field("content_type"), {}, {}, ["W014"]),
        (models.UUIDField(), {}, {}, []),
        (User._meta.pk, {"IDENTIFY": PAGE}, {}, []),
        (User._meta.pk, {"ENABLED": False}, {}, []),
        (User._meta.pk, {}, {"DEBUG": True, "MOE_PERSONALIZE": {}}, []),
        (None, {}, {"AUTH_USER_MODEL": "no.User"}, []),
    ],
)
def test_keys_of_users_that_moengage_forbids(monkeypatch, key, moe, changes, numbers):
    """Whole numbers as primary keys are a warning if they become customer ids. The sandbox accepts any id."""
    if key:
        monkeypatch.setattr(checks, "get_user_model", lambda: SimpleNamespace(_meta=SimpleNamespace(pk=key)))
    messages = check_site({"IDENTIFY": "", **moe}, **changes)
    assert [message.id[-4:] for message in messages] == numbers
    assert all("IDENTIFY" in message.hint and '"user-1"' in message.hint for message in messages)


TWO = ["shop.example.com", "www.shop.example.com", "books.example.com", "localhost"]


@pytest.mark.parametrize(
    ("app", "moe", "changes", "warned"),
    [
        ("django_tenants", {}, {}, True),
        ("tenant_schemas", {}, {}, True),
        ("django.contrib.sites", {}, {"ALLOWED_HOSTS": TWO}, True),
        ("django.contrib.sites", {}, {"ALLOWED_HOSTS": [".example.com"]}, True),
        ("django.contrib.sites", {}, {"ALLOWED_HOSTS": ["*"]}, True),
        ("django.contrib.sites", {}, {"ALLOWED_HOSTS": TWO, "SITE_ID": 1}, False),
        ("django.contrib.sites", {}, {"ALLOWED_HOSTS": TWO[1:2]}, False),
        ("django.contrib.sites", {"IDENTIFY": PAGE}, {"ALLOWED_HOSTS": TWO}, False),
        ("django_tenants", {"IDENTIFY": PAGE}, {}, False),
        ("django.contrib.auth", {}, {"ALLOWED_HOSTS": TWO}, False),
    ],
)
def test_tenants_with_the_same_ids(monkeypatch, app, moe, changes, warned):
    """Several tenants in one process need ids with the tenant's name. A site with one SITE_ID is one tenant."""
    monkeypatch.setattr(checks.apps, "is_installed", {app}.__contains__)
    messages = [m for m in check_site({"IDENTIFY": "", **moe}, **changes) if m.id == "moe_personalize.W015"]
    assert len(messages) == warned
    assert all(app in message.msg and "tenant's name" in message.hint for message in messages)


@pytest.mark.parametrize(
    ("moe", "changes", "lost"),
    [
        ({}, {}, ["moe_id", "utm_source, utm_medium, utm_campaign, utm_term, utm_content"]),
        ({"QUERY_PARAMETERS": ["ref", "utm_source"]}, {}, ["moe_id", "get utm_source."]),
        ({"ANONYMOUS_ID": False}, {"WAGTAIL_CACHE_IGNORE_QS": [r"^utm_s"]}, ["get utm_source."]),
        ({"QUERY_PARAMETERS": ["ref"]}, {}, ["moe_id"]),
        ({}, {"WAGTAIL_CACHE_IGNORE_COOKIES": False, "WAGTAIL_CACHE_IGNORE_QS": None}, []),
        ({"ENABLED": False}, {}, []),
        ({}, {"MIDDLEWARE": SITE["MIDDLEWARE"]}, []),
    ],
)
def test_wagtail_cache_removes_cookie_and_parameters(moe, changes, lost):
    """The package would see a new visitor on each page, and no campaign."""
    middleware = [*SITE["MIDDLEWARE"], "wagtailcache.cache.FetchFromCacheMiddleware"]
    messages = check_site(moe, **{"MIDDLEWARE": middleware, **changes})
    found = [message for message in messages if message.id == "moe_personalize.W018"]
    assert all(name in message.msg for message, name in zip(found, lost, strict=True))


@pytest.mark.parametrize("moe", [{}, SANDBOX_URL])
def test_broken_workspace_file(tmp_path, moe):
    """The error names the place of the mistake in the file."""
    file = tmp_path / "moe.json"
    file.write_text("{")
    [message] = check_site(DEBUG=True, MOE_PERSONALIZE={"SANDBOX": file, **moe})
    assert message.id == "moe_personalize.E013"
    assert "moe.json: line 1" in message.msg


PLACEHOLDERS = ["changeme", "CHANGE_ME", "<your-key>", "your-api-key", "YOUR_KEY_HERE", "xxxx", "...", "api_key"]
PLACEHOLDERS += ["TODO", "{{{{MOE_KEY}}}}", "%KEY%", "None", "placeholder", "insert_key_here", "workspace-id"]
TEXTS = {"WORKSPACE_ID": "SITE", "API_KEY": SECRET, "BASE_URL": "https://proxy.example.com/v1"}
TEXTS['TRANSPORT"]["OPTIONS"]["proxy'] = "http://p.example"
WRONG = [(text, "E015") for text in ("'{}'", '"{}"', "`{}`", "'{}", '{}"', " '{}'\n")]
WRONG += [(text, "W013") for text in (" {}", "{}\n", "{}\r\n", "\t{} ", *PLACEHOLDERS)]


@pytest.mark.parametrize(
    ("name", "text", "number"),
    # An option may have any name as its value.
    [(name, *wrong) for name in TEXTS for wrong in WRONG if "OPTIONS" not in name or wrong[0] not in PLACEHOLDERS],
)
def test_text_from_a_bad_env_file(name, text, number):
    """Quotes, whitespace and placeholders in credentials and URLs are a message that names the setting."""
    value = text.format(TEXTS[name])
    found = check_site({"TRANSPORT": {"OPTIONS": {"proxy": value}}} if "OPTIONS" in name else {name: value})
    [message] = [message for message in found if message.id == f"moe_personalize.{number}"]
    assert message.msg.startswith(f'MOE_PERSONALIZE["{name}"]')
    assert SECRET not in str(found)


@pytest.mark.parametrize(
    ("variable", "value", "number"),
    [
        ("MOE_PERSONALIZE_API_KEY", f"'{SECRET}'", "E015"),
        ("MOE_PERSONALIZE_API_KEY", "changeme", "W013"),
        ("MOE_PERSONALIZE_API_KEY", f" {SECRET}", "W013"),
        ("MOE_PERSONALIZE_DEADLNE", "1", "W002"),
        ("\ufeffMOE_PERSONALIZE_DEADLINE", "1", "W002"),
        ("export MOE_PERSONALIZE_DEADLINE", "1", "W002"),
    ],
)
def test_text_from_a_bad_environment(monkeypatch, variable, value, number):
    """The message names the environment variable. A misspelled variable is a warning with the right name."""
    monkeypatch.setenv(variable, value)
    [message] = check_site({} if number == "W002" else {"API_KEY": None})
    assert message.id == f"moe_personalize.{number}"
    assert "MOE_PERSONALIZE_" in message.msg
    assert number != "W002" or message.hint == 'Did you mean "DEADLINE"?'


def include_ours(prefix="moe/", namespace="shop-moe", app_name="moe_personalize"):
    return path(prefix, include(("django_moe_personalize.urls", app_name), namespace=namespace))


BARE = [
    path("c/<str:token>/", lambda request, token: views.click(request, token), name="click"),
    path("b/", lambda request: views.beacon(request), name="beacon"),
]
INCLUDED = {
    "namespace": [include_ours()],
    "application": [include_ours(app_name="shop")],
    "language": i18n_patterns(include_ours()),
    "nested": [path("shop/", include(([include_ours()], "shop")))],
    "deep": [path("a/", include(([path("b/", include(([include_ours()], "b"), namespace="x"))], "a")))],
    "twice": [path("<slug:shop>/", include(([include_ours()], "shop"))), include_ours(namespace="other")],
    "views": [path("c/<str:token>/", views.click, name="go"), path("b/", views.beacon, name="count")],
    "wrapped": [path("w/", include((BARE, "moe_personalize")))],
}


@pytest.mark.parametrize("kind", INCLUDED)
def test_urls_in_another_namespace(settings, kind):
    """The check, the links and the script find the package's URLs in any namespace, and below any other."""
    urls = type("URLs", (), {"urlpatterns": [path("plain/", page, name="plain"), *INCLUDED[kind]]})
    assert check_site(ROOT_URLCONF=urls) == []
    settings.ROOT_URLCONF = urls
    assert Client().get(rendering.reverse_endpoint("click", "token")).status_code == 400
    assert Client().post(rendering.reverse_endpoint("beacon")).status_code == 204


def test_urls_with_arguments():
    """The package doesn't know the arguments of a prefix, so the check says which URL has them."""
    patterns = [path("plain/", page, name="plain"), include_ours("<slug:shop>/", "shop")]
    [message] = check_site(ROOT_URLCONF=type("URLs", (), {"urlpatterns": patterns}))
    assert message.id == "moe_personalize.W003"
    assert "The URL 'shop:click' takes arguments" in message.msg


@pytest.mark.parametrize(("mode", "lost"), [("render", "so clicks aren't"), ("visible", "so clicks and impressions")])
def test_missing_urls(mode, lost):
    """The message says what isn't counted without the package's URLs."""
    [message] = check_site({"IMPRESSIONS": mode}, ROOT_URLCONF=WithoutOurURLs)
    assert lost in message.msg
    assert 'include("django_moe_personalize.urls")' in message.hint


def test_checks_are_registered_once(monkeypatch):
    """The app registers one check, which runs them all, even if Django calls ready() twice."""
    apps.get_app_config("moe_personalize").ready()
    (registered,) = [check for check in registry.get_checks() if "moe_personalize" in check.tags]
    monkeypatch.setattr(checks, "check_site", lambda: ["a message"])
    assert registered(app_configs=None) == ["a message"]


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
def test_uwsgi_without_threads(monkeypatch, caplog, options, warned):
    """In a uWSGI without threads, the check and the log name the missing option."""
    monkeypatch.setitem(sys.modules, "uwsgi", SimpleNamespace(opt=options))
    found = check_site({})
    assert [message.id[-4:] for message in found] == ["W011"] * warned
    assert all("enable-threads" in message.hint for message in found)
    assert check_site({"DELIVERY": {"BACKEND": "django_moe_personalize.delivery.dummy.DummyDelivery"}}) == []
    ThreadDelivery().close()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
