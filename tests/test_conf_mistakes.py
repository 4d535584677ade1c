"""Settings that are wrong: how each mistake is told, and that no message repeats a secret."""

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_moe_personalize.conf import ConfigurationError, find_problems, get_settings
from tests.configured import SECRET, _clean_environment, configure, from_environment, mistake  # noqa: F401 - a fixture


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("ENABLED", "yes", "True or False", id="boolean as a string"),
        pytest.param("ENABLED", 1, "True or False", id="boolean as a number"),
        pytest.param("WORKSPACE_ID", 42, "Put it in quotation marks.", id="id as a number"),
        pytest.param("WORKSPACE_ID", "…", "printable ASCII", id="placeholder"),
        pytest.param("WORKSPACE_ID", "a:b", "without a space or a colon", id="id with a colon"),
        pytest.param("API_KEY", "a b", "printable ASCII characters without a space.", id="key with a space"),
        pytest.param("DATA_CENTER", 3, 'Write "03".', id="data centre as a number"),
        pytest.param("DATA_CENTER", "3", 'Write "03".', id="data centre without its zero"),
        pytest.param("DATA_CENTER", "DC-101", 'Write "101".', id="data centre with its prefix"),
        pytest.param("DATA_CENTER", "07", "the address of your dashboard", id="no such data centre"),
        pytest.param("BASE_URL", 8899, "a string", id="url"),
        pytest.param("SANDBOX", 1, "the path of a workspace file", id="sandbox as a number"),
        pytest.param("SANDBOX", "", "the path of a workspace file", id="empty sandbox path"),
        pytest.param("EXPERIENCES", ["a"], 'Write {"*": ["hero-banner"]}.', id="keys without a route"),
        pytest.param("EXPERIENCES", {"*": "hero"}, "EXPERIENCES\"]['*'] is 'hero'", id="bare key"),
        pytest.param("EXPERIENCES", {"*": "hero"}, "Put it in brackets: ['hero'].", id="bare key, mended"),
        pytest.param("EXPERIENCES", {"*": 7}, "a list of experience keys", id="keys as a number"),
        pytest.param("EXPERIENCES", {"": ["a"]}, "as the key", id="empty route"),
        pytest.param("EXPERIENCES", {7: ["a"]}, "as the key", id="route as a number"),
        pytest.param("EXPERIENCES", {"*": ["a", ""]}, "['*'][1] is ''", id="empty key"),
        pytest.param("EXPERIENCES", {"*": [7]}, "['*'][0] is 7", id="key as a number"),
        pytest.param("EXPERIENCES", {"*": ["a b"]}, "a name without spaces", id="key with a space"),
        pytest.param("EXPERIENCES", {"*": ["a\0"]}, "a name without spaces", id="key with a control character"),
        pytest.param("IDENTIFY", "identify", "a dotted path", id="path without a dot"),
        pytest.param("IDENTIFY", configure, 'Write its path: "tests.configured.configure".', id="function"),
        pytest.param("IDENTIFY", 7, "a dotted path", id="path as a number"),
        pytest.param("ATTRIBUTES", "a.b", "Put it in brackets: ['a.b'].", id="bare path"),
        pytest.param("ATTRIBUTES", ["a.b", "c"], "\"ATTRIBUTES\"][1] is 'c'", id="second path"),
        pytest.param("QUERY_PARAMETERS", ["user_agent"], "MoEngage's own fields", id="system name"),
        pytest.param("QUERY_PARAMETERS", ["USER_AGENT"], "MoEngage's own fields", id="system name as on the wire"),
        pytest.param("TIME_ZONE", "Europe/Berln", 'Did you mean "Europe/Berlin"?', id="mistyped zone"),
        pytest.param("TIME_ZONE", "!", "an IANA time zone", id="no zone"),
        pytest.param("TIME_ZONE", "../UTC", "an IANA time zone", id="zone outside the database"),
        pytest.param("TIME_ZONE", 2, "an IANA time zone", id="offset"),
        pytest.param("TRUSTED_PROXIES", ["10.1.2.3/8"], 'Write "10.0.0.0/8".', id="host bits"),
        pytest.param("TRUSTED_PROXIES", ["proxy"], "an IP address or network", id="host name for a network"),
        pytest.param("TRUSTED_PROXIES", [10], "an IP address or network", id="network as a number"),
        pytest.param("IP_PRECISION", "truncate", "Did you mean 'truncated'?", id="mistyped choice"),
        pytest.param("IP_PRECISION", "zzz", "one of 'full', 'truncated', 'off'.", id="no choice"),
        pytest.param("DEADLINE", 0, "above 0 and at most 30", id="no time"),
        pytest.param("DEADLINE", 31, "above 0 and at most 30", id="too much time"),
        pytest.param("DEADLINE", float("inf"), "a number of seconds", id="forever"),
        pytest.param("DEADLINE", float("nan"), "a number of seconds", id="not a number"),
        pytest.param("DEADLINE", True, "a number of seconds", id="number as a boolean"),
        pytest.param("DEADLINE", "0.3", "without quotation marks", id="number as a string"),
        pytest.param("CACHE_TTL", -1, "at least 0", id="negative"),
        pytest.param("MAX_CONCURRENT_FETCHES", 0, "from 1 to 1024", id="no fetch"),
        pytest.param("MAX_CONCURRENT_FETCHES", 1.5, "a whole number", id="half a fetch"),
        pytest.param("MAX_CONCURRENT_FETCHES", True, "a whole number", id="whole number as a boolean"),
        pytest.param("CACHE", "", "not empty", id="empty alias"),
        pytest.param("VARY_CACHE_ON", "utm_source", "a list of attribute names", id="bare name"),
        pytest.param("CACHE_CONTROL", "a\r\nSet-Cookie: b", "on one line", id="two headers"),
        pytest.param("CACHE_CONTROL", " ", "on one line", id="empty header"),
        pytest.param("CACHE_CONTROL", "é", "on one line", id="header that is not ASCII"),
        pytest.param("CACHE_CONTROL", 7, "on one line", id="header as a number"),
        pytest.param("DELIVERY", "a.B", 'Write {"BACKEND": "django_moe', id="bare backend"),
        pytest.param("DELIVERY", {"BACKEND": "B"}, '["BACKEND"] is a str', id="backend without a dot"),
        pytest.param("DELIVERY", {"OPTIONS": [1]}, "a dict of keyword arguments", id="options as a list"),
        pytest.param("DELIVERY", {"OPTIONS": {"max-size": 1}}, "keyword arguments", id="option that is no name"),
        pytest.param("DELIVERY", {"OPTIONS": {1: 1}}, "keyword arguments", id="option as a number"),
        pytest.param("TRANSPORT", {"verify": True}, "An option goes into the dict OPTIONS.", id="option outside"),
        pytest.param("CONTENT_HOSTS", ["https://cdn.example.com/a"], 'Write "cdn.example.com".', id="url for a host"),
        pytest.param("CONTENT_HOSTS", ["*.example.com"], 'Write "example.com".', id="wildcard host"),
        pytest.param("CONTENT_HOSTS", ["*"], "a host name such as", id="every host"),
        pytest.param("CONTENT_HOSTS", [7], "a host name such as", id="host as a number"),
    ],
)
def test_mistaken_value_is_told(name, value, expected):
    """A wrong value stops the site with the setting, the place, what is expected and the mend."""
    error = mistake(**{name: value})
    assert isinstance(error, ImproperlyConfigured)
    assert str(error).startswith(f'MOE_PERSONALIZE["{name}"]')
    assert expected in str(error)
    assert str(error) == f"{error.message} {error.hint}".rstrip()


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("ENABLED", "ture", "is 'ture'; expected true or false.", id="boolean"),
        pytest.param("DEADLINE", "300ms", "is '300ms'; expected a number of seconds", id="float"),
        pytest.param("DEADLINE", "nan", "expected a number of seconds", id="not a number"),
        pytest.param("MAX_CONCURRENT_FETCHES", "1.5", "expected a whole number", id="int"),
        pytest.param("EXPERIENCES", "{", "expected JSON", id="broken JSON"),
        pytest.param("EXPERIENCES", "[" * 100_000, "expected JSON", id="JSON too deep"),
        pytest.param("DEADLINE", "$NOT_SET", "names another variable, which is not set", id="other variable"),
        pytest.param("DEADLINE", "$MOE_PERSONALIZE_DEADLINE", "which is not set", id="itself"),
    ],
)
def test_mistaken_variable_is_told(monkeypatch, name, text, expected):
    """A wrong variable stops the site with its own name."""
    with pytest.raises(ConfigurationError, match=f"^MOE_PERSONALIZE_{name}") as caught:
        from_environment(monkeypatch, **{name: text})
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"API_KEY": SECRET + " x"}, id="key"),
        pytest.param({"API_KEY": [SECRET]}, id="key in a list"),
        pytest.param({"BASE_URL": [SECRET]}, id="url"),
        pytest.param({"TRANSPORT": {"OPTIONS": [SECRET]}}, id="transport options"),
        pytest.param({"TRANSPORT": {"proxies": SECRET}}, id="transport option in the wrong place"),
        pytest.param({"DELIVERY": SECRET}, id="delivery"),
        pytest.param({"APIKEY": SECRET}, id="mistyped name"),
    ],
)
def test_no_message_repeats_a_secret(given):
    """A mistake in a secret is told without the secret, in the error and its causes."""
    error = mistake(**given)
    assert SECRET not in str(error)
    assert error.__cause__ is None
    assert SECRET not in str(find_problems())


def test_key_that_begins_with_a_dollar_is_not_repeated(monkeypatch):
    """django-environ takes such a key for the name of a variable: the mistake is told without it."""
    with pytest.raises(ConfigurationError) as caught:
        from_environment(monkeypatch, API_KEY=f"${SECRET}")
    assert SECRET not in str(caught.value)
    assert "write the value into the dict" in caught.value.hint


def test_repr_holds_no_secret():
    """Settings may be printed: neither key, URL nor options are in the repr."""
    options = {"OPTIONS": {"password": SECRET}}
    found = configure(API_KEY=SECRET, BASE_URL=f"https://{SECRET}@x", DELIVERY=options, TRANSPORT=options)
    assert SECRET not in repr(found)
    assert SECRET not in repr(found.delivery)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        pytest.param("DEADLNE", 'Did you mean "DEADLINE"?', id="letter missing"),
        pytest.param("api_key", 'Did you mean "API_KEY"?', id="lower case"),
        pytest.param("ZZZ", "The settings are ENABLED, WORKSPACE_ID, ", id="like nothing"),
        pytest.param(7, "The settings are ENABLED, ", id="number"),
    ],
)
def test_unknown_setting_has_a_nearest_name(name, hint):
    """A name that is no setting stops the site and names the one that was meant."""
    with override_settings(MOE_PERSONALIZE={name: 1}), pytest.raises(ConfigurationError) as caught:
        get_settings()
    assert f"MOE_PERSONALIZE has no setting {name!r}." in str(caught.value)
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        pytest.param("DEADLNE", "Did you mean MOE_PERSONALIZE_DEADLINE?", id="near"),
        pytest.param("ZZZ", "Remove it, or give it another prefix.", id="like nothing"),
    ],
)
def test_unknown_variable_stops_nothing(monkeypatch, name, hint):
    """A variable that is no setting is a problem to be told, not one to stop for: it may be another's."""
    monkeypatch.setenv(f"MOE_PERSONALIZE_{name}", SECRET)
    with override_settings(MOE_PERSONALIZE={}):
        [problem] = find_problems()
        assert get_settings().deadline == 0.3
    assert (problem.kind, problem.name, problem.hint) == ("environment", name, hint)
    assert SECRET not in problem.message


def test_every_mistake_is_told_at_once(monkeypatch):
    """One error names all mistakes, each on its line, and find_problems() has the same."""
    monkeypatch.setenv("MOE_PERSONALIZE_CACHE_TTL", "soon")
    with override_settings(MOE_PERSONALIZE={"DEADLINE": 0, "CACH": "x"}):
        with pytest.raises(ConfigurationError) as caught:
            get_settings()
        problems = find_problems()
    assert str(caught.value).splitlines() == [
        "MOE_PERSONALIZE has 3 mistakes:",
        *(f"- {problem.message} {problem.hint}".rstrip() for problem in problems),
    ]
    assert [(problem.kind, problem.name) for problem in problems] == [
        ("unknown", "CACH"),
        ("value", "DEADLINE"),
        ("value", "CACHE_TTL"),
    ]


def test_setting_that_is_no_dict_is_told():
    """MOE_PERSONALIZE itself has to be a dict; what it is instead is not repeated."""
    with override_settings(MOE_PERSONALIZE=SECRET), pytest.raises(ConfigurationError) as caught:
        get_settings()
    assert "MOE_PERSONALIZE is not a dict." in str(caught.value)
    assert SECRET not in str(caught.value)
