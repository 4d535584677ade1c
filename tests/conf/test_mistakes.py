"""Wrong settings: each error says what is wrong, where, and how to fix it, and shows no secret."""

import sys

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_moe_personalize.conf import Backend, ConfigurationError, find_problems, get_settings
from django_moe_personalize.conf.settings import load_backend, load_object
from tests.conf.configured import SECRET, configure, configure_environment, read_error


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ENABLED", "yes", "True or False"),
        ("ENABLED", 1, "True or False"),
        ("WORKSPACE_ID", 42, "Put it in quotation marks."),
        ("WORKSPACE_ID", "…", "printable ASCII"),
        ("WORKSPACE_ID", "a:b", "without spaces and colons"),
        ("API_KEY", "a b", "printable ASCII characters without spaces."),
        ("DATA_CENTER", 3, 'Write "03".'),
        ("DATA_CENTER", "3", 'Write "03".'),
        ("DATA_CENTER", "DC-101", 'Write "101".'),
        ("DATA_CENTER", "07", "the address of your dashboard"),
        ("BASE_URL", 8899, "expected a string."),
        ("SANDBOX", 1, "the path of a workspace file"),
        ("SANDBOX", "", "the path of a workspace file"),
        ("EXPERIENCES", ["a"], 'Write {"*": ["hero-banner"]}.'),
        ("EXPERIENCES", {"*": "hero"}, "EXPERIENCES\"]['*'] is 'hero'; expected a list. Put it in brackets: ['hero']."),
        ("EXPERIENCES", {"*": 7}, "expected a list."),
        ("EXPERIENCES", {"": ["a"]}, "as the key"),
        ("EXPERIENCES", {7: ["a"]}, "as the key"),
        ("EXPERIENCES", {"*": ["a", ""]}, "['*'][1] is ''"),
        ("EXPERIENCES", {"*": [7]}, "['*'][0] is 7"),
        ("EXPERIENCES", {"*": ["a b"]}, "a name without spaces"),
        ("EXPERIENCES", {"*": ["a\0"]}, "a name without spaces"),
        ("LEARN_ROUTES", 1, "True, False or a dotted path"),
        ("IDENTIFY", "identify", "a dotted path"),
        ("IDENTIFY", configure, 'Write its path: "tests.conf.configured.configure".'),
        ("IDENTIFY", 7, "a dotted path"),
        ("ATTRIBUTES", "a.b", "Put it in brackets: ['a.b']."),
        ("ATTRIBUTES", ["a.b", "c"], "\"ATTRIBUTES\"][1] is 'c'"),
        ("ATTRIBUTES", [""], "a dotted path"),
        ("QUERY_PARAMETERS", ["user_agent"], "Remove it"),
        ("QUERY_PARAMETERS", ["USER_AGENT"], "a name that MoEngage doesn't use"),
        ("TIME_ZONE", "Europe/Berln", 'Did you mean "Europe/Berlin"?'),
        ("TIME_ZONE", "!", "an IANA time zone"),
        ("TIME_ZONE", "../UTC", "an IANA time zone"),
        ("TIME_ZONE", 2, "an IANA time zone"),
        ("TRUSTED_PROXIES", ["10.1.2.3/8"], 'Write "10.0.0.0/8".'),
        ("TRUSTED_PROXIES", ["proxy"], "an IP address, a network"),
        ("TRUSTED_PROXIES", [10], "an IP address, a network"),
        ("TRUSTED_PROXIES", ["unix:/run/site.sock"], 'Write "unix" for a unix socket.'),
        ("ANONYMOUS_EVENTS", "allways", 'Did you mean "always"?'),
        ("IP_PRECISION", "truncate", 'Did you mean "truncated"?'),
        ("IP_PRECISION", "zzz", "one of 'full', 'truncated', 'off'."),
        ("DEADLINE", 0, "above 0 and at most 30"),
        ("DEADLINE", 31, "above 0 and at most 30"),
        ("DEADLINE", float("inf"), "a number of seconds"),
        ("DEADLINE", float("nan"), "a number of seconds"),
        ("DEADLINE", True, "a number of seconds"),
        ("DEADLINE", "0.3", "Write it without quotation marks."),
        ("CACHE_TTL", -1, "a number of seconds, at least 0."),
        ("CACHE_TTL", float("inf"), "a number of seconds, at least 0."),
        ("MAX_CONCURRENT_FETCHES", 0, "from 1 to 1024"),
        ("MAX_CONCURRENT_FETCHES", 1.5, "a whole number"),
        ("MAX_CONCURRENT_FETCHES", True, "a whole number"),
        ("MAX_CONCURRENT_FETCHES", "8", "Write it without quotation marks."),
        ("CACHE", "", "not empty"),
        ("VARY_CACHE_ON", "utm_source", "Put it in brackets: ['utm_source']."),
        ("CACHE_CONTROL", "a\r\nSet-Cookie: b", "on one line"),
        ("CACHE_CONTROL", " ", "on one line"),
        ("CACHE_CONTROL", "é", "on one line"),
        ("CACHE_CONTROL", 7, "on one line"),
        ("CACHE_CONTROL", '"private, no-store"', "without quotation marks around it"),
        ("QUERY_PARAMETERS", ['"gclid"'], "without quotation marks around it"),
        ("VARY_CACHE_ON", ["'plan'"], "without quotation marks around it"),
        ("DELIVERY", "a.B", 'Write {"BACKEND": "django_moe'),
        ("DELIVERY", {"BACKEND": "B"}, '["BACKEND"] is a str, not shown'),
        ("DELIVERY", {"OPTIONS": [1]}, '["OPTIONS"] is a list, not shown; expected a dict of keyword arguments'),
        ("DELIVERY", {"OPTIONS": {"max-size": 1}}, "keyword arguments"),
        ("DELIVERY", {"OPTIONS": {1: 1}}, "keyword arguments"),
        ("TRANSPORT", {"verify": True}, "Move 'verify' into OPTIONS."),
        ("CONTENT_HOSTS", ["https://cdn.example.com/a"], 'Write "cdn.example.com".'),
        ("CONTENT_HOSTS", ["*.example.com"], 'Write "example.com".'),
        ("CONTENT_HOSTS", ["https://bücher.example"], 'Write "xn--bcher-kva.example".'),
        ("CONTENT_HOSTS", ["cdn.example.com:70000"], "a host name such as"),
        ("CONTENT_HOSTS", ["cdn..example.com"], "a host name such as"),
        ("CONTENT_HOSTS", ["*"], "a host name such as"),
        ("CONTENT_HOSTS", [7], "a host name such as"),
    ],
)
def test_wrong_value_in_the_dict(name, value, expected):
    """The error names the setting, the place in its value, the expected kind and the fix."""
    error = read_error(**{name: value})
    assert isinstance(error, ImproperlyConfigured)
    assert str(error).startswith(f'MOE_PERSONALIZE["{name}"]')
    assert expected in str(error)
    assert str(error) == f"{error.message} {error.hint}".rstrip()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("ENABLED", "ture", "is 'ture'; expected True or False."),
        ("ENABLED", "2", "expected True or False."),
        ("DEADLINE", "300ms", "is '300ms'; expected a number of seconds, above 0 and at most 30."),
        ("DEADLINE", "nan", "is 'nan'; expected a number of seconds, above 0 and at most 30."),
        ("DEADLINE", "1,000", "is '1,000'; expected a number of seconds, above 0 and at most 30."),
        ("MAX_CONCURRENT_FETCHES", "1.5", "is '1.5'; expected a whole number from 1 to 1024."),
        ("MAX_CONCURRENT_FETCHES", "0", "is 0; expected a whole number from 1 to 1024."),
        ("EXPERIENCES", "{", "is '{'; expected a dict"),
        ("EXPERIENCES", "[" * 100_000, "expected a dict"),
        ("ATTRIBUTES", '["a.b"', "is '[\"a.b\"'; expected a list."),
        ("ATTRIBUTES", "a.b, ,c.d", "[1] is ''; expected a dotted path"),
        ("DELIVERY", "{", "is a str, not shown; expected a dict."),
        ("DEADLINE", "$NOT_SET", "names another variable, which is not set. Set that variable"),
        ("DEADLINE", "$MOE_PERSONALIZE_DEADLINE", "which is not set."),
        ("API_KEY", f"${SECRET}", "write the value into the dict"),
    ],
)
def test_wrong_value_in_the_environment(monkeypatch, name, text, expected):
    """The error names the variable and the expected kind, even where django-environ would take a nonsense value."""
    with pytest.raises(ConfigurationError, match=f"^MOE_PERSONALIZE_{name}") as caught:
        configure_environment(monkeypatch, **{name: text})
    assert expected in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"API_KEY": SECRET + " x"},
        {"API_KEY": [SECRET]},
        {"BASE_URL": [SECRET]},
        {"TRANSPORT": {"OPTIONS": [SECRET]}},
        {"TRANSPORT": {"proxies": SECRET}},
        {"DELIVERY": SECRET},
        {"APIKEY": SECRET},
    ],
)
def test_no_message_shows_a_secret(given):
    """Neither the error, its cause nor the problems contain the value of a secret setting."""
    error = read_error(**given)
    assert SECRET not in str(error)
    assert error.__cause__ is None
    with override_settings(MOE_PERSONALIZE=given):
        assert find_problems()
        assert SECRET not in str(find_problems())


def test_no_repr_shows_a_secret():
    """The repr of the settings has no key, no URL and no options."""
    options = {"OPTIONS": {"password": SECRET}}
    found = configure(API_KEY=SECRET, BASE_URL=f"https://{SECRET}@x", DELIVERY=options, TRANSPORT=options)
    assert SECRET not in repr(found)
    assert SECRET not in repr(found.delivery)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DEADLNE", 'Did you mean "DEADLINE"?'),
        ("api_key", 'Did you mean "API_KEY"?'),
        ("ZZZ", "Use one of ENABLED, WORKSPACE_ID, "),
        (7, "Use one of ENABLED, "),
    ],
)
def test_unknown_setting(name, hint):
    """The error suggests the most similar name."""
    with override_settings(MOE_PERSONALIZE={name: 1}), pytest.raises(ConfigurationError) as caught:
        get_settings()
    assert f"MOE_PERSONALIZE has the unknown key {name!r}." in str(caught.value)
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("name", "hint"), [("DEADLNE", 'Did you mean "DEADLINE"?'), ("ZZZ", "Remove it, or give it another prefix.")]
)
def test_unknown_variable(monkeypatch, name, hint):
    """A variable that only looks like a setting is a problem, but it stops nothing."""
    monkeypatch.setenv(f"MOE_PERSONALIZE_{name}", SECRET)
    with override_settings(MOE_PERSONALIZE={}):
        [problem] = find_problems()
        assert get_settings().deadline == 0.3
    assert (problem.kind, problem.name, problem.hint) == ("environment", name, hint)
    assert f"MOE_PERSONALIZE_{name} names the unknown setting '{name}'." in problem.message
    assert SECRET not in problem.message


def test_all_mistakes_at_once(monkeypatch):
    """One error lists all mistakes, each on its own line, as find_problems() does."""
    monkeypatch.setenv("MOE_PERSONALIZE_METADATA_TTL", "soon")
    with override_settings(MOE_PERSONALIZE={"DEADLINE": 0, "CACH": "x", "CACHE_STALE_TTL": 59.5}):
        with pytest.raises(ConfigurationError) as caught:
            get_settings()
        problems = find_problems()
    assert str(caught.value).splitlines() == [
        "MOE_PERSONALIZE has 4 mistakes:",
        "- MOE_PERSONALIZE has the unknown key 'CACH'. Did you mean \"CACHE\"?",
        '- MOE_PERSONALIZE["DEADLINE"] is 0; expected a number of seconds, above 0 and at most 30.',
        "- MOE_PERSONALIZE_METADATA_TTL is 'soon'; expected a number of seconds, at least 1.",
        "- CACHE_STALE_TTL of MOE_PERSONALIZE (59.5 s) is shorter than CACHE_TTL (60 s). "
        "Set it to at least 60, or remove it.",
    ]
    kinds = {"CACH": "unknown", "DEADLINE": "value", "METADATA_TTL": "value", "CACHE_STALE_TTL": "value"}
    assert [(problem.name, problem.kind) for problem in problems] == list(kinds.items())


def test_setting_is_not_a_dict():
    """The error doesn't show the value."""
    with override_settings(MOE_PERSONALIZE=SECRET), pytest.raises(ConfigurationError) as caught:
        get_settings()
    assert "MOE_PERSONALIZE is not a dict. Write MOE_PERSONALIZE = {" in str(caught.value)
    assert SECRET not in str(caught.value)


class Part:
    def __init__(self, url, *, verify=True):
        """Do nothing."""


def without_options(client):
    """Do nothing."""


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("no_such.identify", "ModuleNotFoundError", "Correct the path"),
        (f"{__name__}.absent", "can't be imported", "Correct the path"),
        ("celery.Celery", "ModuleNotFoundError", "Install it: pip install celery."),
        (f"{__name__}.SECRET", "isn't callable", "Name a function or a class."),
    ],
)
def test_wrong_path(monkeypatch, path, message, hint):
    """The error names the setting, the path and the reason, and how to install a missing library."""
    monkeypatch.setitem(sys.modules, "celery", None)
    with pytest.raises(ConfigurationError) as caught:
        load_object("IDENTIFY", path)
    assert caught.value.message.startswith(f"MOE_PERSONALIZE[\"IDENTIFY\"] is '{path}', which ")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Part", "Use only these options: verify."), ("without_options", "Remove the options: it accepts none.")],
)
def test_wrong_option(name, hint):
    """The error names the option without its value, and the hint lists the right options."""
    backend = Backend(f"{__name__}.{name}", {"verfy": SECRET})
    with pytest.raises(ConfigurationError) as caught:
        load_backend("TRANSPORT", backend, "https://x")
    assert caught.value.message.startswith(f'MOE_PERSONALIZE["TRANSPORT"]["OPTIONS"] doesn\'t fit {backend.backend}: ')
    assert "'verfy'" in caught.value.message
    assert caught.value.hint == hint
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("path", "expected"), [(f"{__name__}.Part", Part), ("builtins.dict", dict)])
def test_right_backend(path, expected):
    """The class comes back if its signature accepts the options, or if it has no signature."""
    assert load_backend("TRANSPORT", Backend(path, {"verify": False}), "https://x") is expected
